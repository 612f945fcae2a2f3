"""Many slow streams at once in one worker: all of them whole.

`python -m tests.bench.streams` holds as many as descriptors allow.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.bench.contenders import configuration
from tests.bench.load import Caller, payload
from tests.bench.upstream import DELTAS, HEAD, Upstream, ending
from tests.fakes.served import served
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    import re
    from pathlib import Path

STREAMS: Final = 500
EVENTS: Final = 4
PATIENCE_S: Final = LONG_S


class Waiting(Upstream):
    """An upstream that begins to answer, and goes on when it is told to."""

    def __init__(self, begun: list[Waiting]) -> None:
        super().__init__()
        self._begun = begun

    def _stream(self, asked: re.Match[bytes]) -> None:
        self._begun.append(self)
        self._transport.write(HEAD + DELTAS[True])

    def go_on(self) -> None:
        """Send the other events and the end."""
        self._transport.write(DELTAS[True] * (EVENTS - 1) + ending(EVENTS, tells_usage=True))


async def in_flight(ops_port: int) -> float:
    """How many exchanges are under way, by the worker's own count."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ops_port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    lines = [line for line in text.splitlines() if line.startswith("sluice_exchanges_in_flight{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_five_hundred_slow_streams_run_side_by_side(tmp_path: Path) -> None:
    """All are open at once, and each gets all of its events and its end."""
    begun: list[Waiting] = []
    server = await asyncio.get_running_loop().create_server(lambda: Waiting(begun), "127.0.0.1", 0, backlog=1024)
    config = configuration(server.sockets[0].getsockname()[1], tmp_path, port=0, ops_port=0)
    became: Counter[str] = Counter()

    async def stream(port: int) -> None:
        caller = await Caller.connect(port)
        answer = await caller.ask(payload(f"mock-{EVENTS}-0", stream=True))
        caller.close()
        is_good = answer.status == 200 and answer.is_whole and answer.tail.endswith(b"data: [DONE]\n\n")
        became["whole" if is_good and answer.events == EVENTS + 2 else repr(answer)] += 1

    async with server, served(config, tmp_path) as proxy:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(stream(proxy.port))
            await until(lambda: len(begun) == STREAMS, "all streams begun", PATIENCE_S)
            assert await in_flight(proxy.ops_port) == STREAMS
            for one in begun:
                one.go_on()
        await until(lambda: len(proxy.exchanges) == STREAMS, "a line for each", PATIENCE_S)
        assert await in_flight(proxy.ops_port) == 0
        server.close()
    assert became == {"whole": STREAMS}
    assert Counter(line["outcome"] for line in proxy.exchanges) == {"ok": STREAMS}
