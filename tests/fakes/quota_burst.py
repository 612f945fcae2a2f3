"""Client processes that all ask at the same moment: `python -m tests.fakes.quota_burst KEY FIRST COUNT PORT...` is one.

It opens COUNT connections, to the ports in turn, and sends the head of a request on each; says "ready"; waits for a
line on its standard input; sends the bodies, and prints each answer as a line of JSON the moment it has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

ROOT: Final = Path(__file__).parents[2]
CHAT: Final = "/v1/chat/completions"
MODEL: Final = "m"
MOST_OUTPUT: Final = 50
READY_S: Final = 20.0


class Told(NamedTuple):
    """What one client was told, and when it had sent its request and had the answer, in ms of UNIX time."""

    number: int
    status: int
    sent_ms: float
    received_ms: float
    code: str | None
    retry_after: str | None
    retry_after_ms: str | None


def request(number: int, max_tokens: int = MOST_OUTPUT) -> dict[str, Any]:
    """A question that says whose it is."""
    messages = [{"role": "user", "content": "Say this is a test"}]
    return {"model": MODEL, "max_tokens": max_tokens, "user": str(number), "messages": messages}


def used_by(number: int) -> dict[str, int]:
    """What the upstream says that request used: anything from next to nothing to all that was reserved."""
    output = number % (MOST_OUTPUT + 1)
    return {"prompt_tokens": 10, "completion_tokens": output, "total_tokens": 10 + output}


def answer(raw: bytes) -> bytes:
    """The upstream's answer to a request."""
    number = int(json.loads(raw.partition(b"\r\n\r\n")[2])["user"])
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}
    shown = {"id": f"c-{number}", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return response(json.dumps(shown | {"usage": used_by(number)}).encode())


class HoldingUpstream(AnsweringUpstream):
    """Answers nobody before `released` is set; `held` are those that wait for it."""

    def __init__(self) -> None:
        super().__init__(answer)
        self.released = asyncio.Event()
        self.held = 0

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        raw = await super()._request(reader)
        self.held += 1
        await self.released.wait()
        self.held -= 1
        return raw


class Crowd:
    """The processes, and what their clients were told so far."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._ready = 0

    @property
    def refused(self) -> list[Told]:
        return [told for told in self.told if told.status != 200]

    async def start(self, ports: Sequence[int], key: str, processes: int, each: int) -> None:
        """Start them, and wait until every request is on its way but for its body."""
        for first in range(0, processes * each, each):
            words = ("-m", "tests.fakes.quota_burst", key, str(first), str(each), *map(str, ports))
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=ROOT, stdin=pipe, stdout=pipe)
            self.processes.append(process)
            self._readers.append(asyncio.get_running_loop().create_task(self._read(process)))
        await until(lambda: self._ready == processes, "clients that are ready", READY_S)

    def go(self) -> None:
        """Let all of them ask."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")

    async def end(self) -> None:
        """Wait for them; after a failure they are ended."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        await asyncio.gather(*self._readers)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line == b"ready\n":
                self._ready += 1
            else:
                self.told.append(Told(*json.loads(line)))


@contextlib.asynccontextmanager
async def crowd(ports: Sequence[int], key: str, *, processes: int, each: int) -> AsyncIterator[Crowd]:
    """Client processes that stand ready, each with so many clients of the same key."""
    people = Crowd()
    try:
        await people.start(ports, key, processes, each)
        yield people
    except BaseException:
        for process in people.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        raise
    finally:
        await people.end()


async def _ask(client: RecordingClient, number: int, body: bytes) -> None:
    sent_ms = time.time() * 1000
    client.writer.write(body)
    told = await client.answer()
    received_ms = time.time() * 1000
    code = None if told.status == 200 else told.error["code"]
    headers = told.header("retry-after"), told.header("retry-after-ms")
    print(json.dumps(Told(number, told.status, sent_ms, received_ms, code, *headers)), flush=True)


async def _main(key: str, first: int, count: int, ports: list[int]) -> None:
    clients = []
    for number in range(first, first + count):
        client = await RecordingClient.connect(ports[number % len(ports)])
        body = json.dumps(request(number)).encode()
        headers = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
        client.send("POST", CHAT, key=key, headers=headers)
        clients.append((client, number, body))
    print("ready", flush=True)
    if sys.stdin.readline():
        await asyncio.gather(*(_ask(*asking) for asking in clients))
    for client, _, _ in clients:
        await client.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(port) for port in sys.argv[4:]]))
