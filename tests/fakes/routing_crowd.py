"""Many clients that ask for streams, one after the other, and judge every answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.fakes.client import RecordingClient
from tests.fakes.line import CHAT_REQUEST, JSON_TYPE
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.client import Answer

WITHIN_S: Final = LONG_S


class Crowd:
    """`ends` counts how streams ended: `whole` as `expected`, `told` of a failure, `cut`, or with an error's status.

    What is none of these, such as an end that looks whole and is not, is counted as `false`.
    """

    def __init__(self, port: int, expected: bytes) -> None:
        self.ends: Counter[str] = Counter()
        self._port = port
        self._expected = expected

    @property
    def count(self) -> int:
        """Streams that have ended."""
        return sum(self.ends.values())

    async def more(self, count: int) -> None:
        """Wait until so many more have ended."""
        wanted = self.count + count
        await until(lambda: self.count >= wanted, f"{count} more streams", WITHIN_S)

    async def ask(self, after_s: float) -> None:
        """One client, until it is cancelled. It begins late, so that not all go in step."""
        await asyncio.sleep(after_s)
        client = await RecordingClient.connect(self._port)
        try:
            while True:
                answer = await client.ask("POST", "/v1/chat/completions", CHAT_REQUEST, headers=(JSON_TYPE,))
                self.ends[self._end(answer)] += 1
                if not answer.whole:
                    await client.close()
                    client = await RecordingClient.connect(self._port)
        finally:
            await client.close()

    def _end(self, answer: Answer) -> str:
        if answer.status != 200:
            return f"status {answer.status}"
        if answer.whole and answer.body == self._expected:
            return "whole"
        if not answer.whole:
            return "cut"
        sent, mark, error = answer.body.partition(b'data: {"error":')
        honest = mark and self._expected.startswith(sent) and error.endswith(b"\n\ndata: [DONE]\n\n")
        return "told" if honest else "false"


@contextlib.asynccontextmanager
async def crowd(port: int, size: int, expected: bytes, over_s: float) -> AsyncIterator[Crowd]:
    """So many clients that ask until the block ends; they come over that many seconds."""
    asking = Crowd(port, expected)
    tasks = [asyncio.get_running_loop().create_task(asking.ask(over_s * index / size)) for index in range(size)]
    try:
        yield asking
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        broken = [task for task in tasks if not task.cancelled()]
        assert not broken, broken
