"""What the usual paths cost, in counts: a proxy in a process of its own that counts, fed unit by unit.

The upstream sends one event at a time, and the next one only when the client has got the last: so nothing is read
together by chance, and the counts are the same on an idle machine and on a busy one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.bench.contenders import configuration
from tests.bench.load import KEY
from tests.bench.upstream import ANSWER, DELTAS, HEAD, ending
from tests.fakes.client import Answer, RecordingClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.served import start
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.served import Served

EVENTS_A_STREAM: Final = 10
WARM_UP: Final = 20
PATIENCE_S: Final = LONG_S
# epoll_wait and epoll_pwait, by architecture
WAITING: Final = {"x86_64": (232, 281), "aarch64": (22,)}.get(platform.machine(), ())
CHAT: Final = {"messages": [{"role": "user", "content": "Hi there"}]}


class Function(NamedTuple):
    """What one function did, as a part of one unit."""

    file: str
    name: str
    calls: float
    bytecodes: float


@dataclass
class Counts:
    """What one unit took: a request, a stream, an event."""

    unit: str
    functions: list[Function]

    @property
    def calls(self) -> float:
        return sum(function.calls for function in self.functions)

    @property
    def bytecodes(self) -> float:
        return sum(function.bytecodes for function in self.functions)

    def top(self, rows: int) -> str:
        """The functions that took most."""
        most = sorted(self.functions, key=lambda function: -function.bytecodes)[:rows]
        lines = [f"{one.bytecodes:9.1f} bytecodes {one.calls:7.2f} calls  {one.file} {one.name}" for one in most]
        return "\n".join([f"{self.unit}: {self.bytecodes:.0f} bytecodes, {self.calls:.1f} calls", *lines])


class Counted:
    """A proxy that counts, its client and its upstream, all at one's fingertips."""

    def __init__(self, proxy: Served, client: RecordingClient, upstream: RawUpstream, file: Path) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream = upstream
        self._file = file

    async def warm_up(self) -> None:
        """Connect, and let everything happen that happens once."""
        self._client.send("POST", "/v1/chat/completions", {"model": "mock", **CHAT}, key=KEY)
        self._peer: RawPeer = await asyncio.wait_for(self._upstream.accept(), PATIENCE_S)
        await self._answered()
        for _ in range(WARM_UP):
            await self._request()
            await self._stream()
            await self._burst()

    async def requests(self, count: int) -> Counts:
        """What a request that is not streamed takes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._count("request", count, self._request)

    async def streams(self, count: int) -> Counts:
        """What a stream of ten events takes, from the request to its end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._count("stream", count, self._stream)

    async def bursts(self, count: int) -> Counts:
        """What a stream of ten events takes that comes in one read, head and all."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._count("burst", count, self._burst)

    async def events(self, count: int) -> Counts:
        """What one more event of a stream takes."""
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._begun()
            counts = await self._count("event", count, lambda: self._event(answer))
            await self._end(answer, count)
            return counts

    async def system_calls(self, count: int) -> float | str:
        """What an event takes in system calls of the loop's thread; what is in the way, where they cannot be counted.

        How often it waits for events is left out: that depends on what comes while it works. Requests are not counted,
        as they wake other threads: how often those are in one another's way is a matter of chance.
        """
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._begun()
            calls = await self._traced(count, lambda: self._event(answer))
            await self._end(answer, count)
            return calls

    async def _traced(self, count: int, once: Callable[[], Awaitable[None]]) -> float | str:
        words = ("-m", "tests.fakes.system_calls", str(self._proxy.pid), str(self._file))
        tracer = await asyncio.create_subprocess_exec(sys.executable, *words)
        try:
            await until(lambda: self._written() is not None, "the count begun", PATIENCE_S)
            if self._written() == "counting":
                for _ in range(count):
                    await once()
                tracer.terminate()
        finally:
            await tracer.wait()
        said = self._written()
        self._file.unlink()
        if "error" in said:
            return str(said["error"])
        return float(sum(times for number, times in said["calls"].items() if int(number) not in WAITING)) / count

    async def _count(self, unit: str, count: int, once: Callable[[], Awaitable[None]]) -> Counts:
        self._proxy.process.send_signal(signal.SIGUSR1)
        await until(lambda: self._written() == "counting", "the count begun", PATIENCE_S)
        for _ in range(count):
            await once()
        self._proxy.process.send_signal(signal.SIGUSR2)
        await until(lambda: isinstance(self._written(), list), "the counts written", PATIENCE_S)
        rows = self._written()
        self._file.unlink()
        return Counts(unit, [Function(_short(row[0]), row[1], row[2] / count, row[3] / count) for row in rows])

    def _written(self) -> Any:
        return json.loads(self._file.read_text()) if self._file.exists() else None

    async def _request(self) -> None:
        self._client.send("POST", "/v1/chat/completions", {"model": "mock", **CHAT}, key=KEY)
        await self._answered()

    async def _answered(self) -> None:
        await self._peer.answer(ANSWER)
        answer = await self._client.answer()
        assert (answer.status, answer.whole) == (200, True), answer

    async def _begun(self) -> Answer:
        self._client.send("POST", "/v1/chat/completions", {"model": "mock", "stream": True, **CHAT}, key=KEY)
        await self._peer.answer(HEAD)
        return await self._client.head()

    async def _event(self, answer: Answer) -> None:
        await self._peer.send(DELTAS[True])
        assert await self._client.piece(answer)

    async def _end(self, answer: Answer, events: int) -> None:
        await self._peer.send(ending(events, tells_usage=True))
        while await self._client.piece(answer):
            continue
        assert answer.whole
        assert answer.body.endswith(b"data: [DONE]\n\n")

    async def _stream(self) -> None:
        answer = await self._begun()
        for _ in range(EVENTS_A_STREAM):
            await self._event(answer)
        await self._end(answer, EVENTS_A_STREAM)

    async def _burst(self) -> None:
        self._client.send("POST", "/v1/chat/completions", {"model": "mock", "stream": True, **CHAT}, key=KEY)
        await self._peer.answer(HEAD + DELTAS[True] * EVENTS_A_STREAM + ending(EVENTS_A_STREAM, tells_usage=True))
        answer = await self._client.answer()
        assert answer.whole
        assert answer.body.endswith(b"data: [DONE]\n\n")


@contextlib.asynccontextmanager
async def counted(folder: Path) -> AsyncIterator[Counted]:
    """A proxy with everything on that counts when asked to."""
    file = folder / "counts.json"
    with RawUpstream() as upstream:
        config = configuration(upstream.port, folder, port=0, ops_port=0)
        proxy = await start(config, folder, program="tests.fakes.counted", environ={"COUNTED": str(file)})
        try:
            await proxy.listening()
            async with await RecordingClient.connect(proxy.port) as client:
                on = Counted(proxy, client, upstream, file)
                await on.warm_up()
                yield on
        finally:
            proxy.kill()
            await proxy.exit_code()


def _short(file: str) -> str:
    """A path below the checkout, the libraries or the standard library."""
    for mark in ("site-packages" + os.sep, os.sep + "proxy" + os.sep, os.sep + "lib" + os.sep):
        _, found, after = file.rpartition(mark)
        if found:
            return f"proxy{os.sep}{after}" if mark.startswith(os.sep + "proxy") else after
    return file
