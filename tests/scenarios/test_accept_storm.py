"""Hundreds of connections at once: as many as are allowed are served, the others told at once why they are not.

`python -m tests.bench.streams --storm 2000` makes larger ones.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Final, cast

from tests.bench.contenders import configuration
from tests.bench.load import Caller, payload
from tests.bench.upstream import Upstream
from tests.fakes.served import served
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from pathlib import Path

STORM: Final = 500
CAP: Final = 200
PATIENCE_S: Final = LONG_S


class Connection(asyncio.Protocol):
    """One that begins to ask at once, as clients do, and never comes to the end of it.

    What it said is there when it is refused: a server that closes with that unread resets the connection, and the
    answer is gone.
    """

    def __init__(self) -> None:
        self.received = b""
        self.is_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(payload("mock-1-0", stream=False)[:-1])

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> None:
        self.is_ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ended = True

    def refusal(self) -> tuple[int, str, str | None]:
        """Its status, its code, and how long to wait before the next try."""
        head, _, body = self.received.decode().partition("\r\n\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
        return int(head.split(" ")[1]), json.loads(body)["error"]["code"], headers.get("retry-after")


async def test_a_storm_fills_the_cap_and_the_rest_is_refused_clearly(tmp_path: Path) -> None:
    """A stream that was there before goes on through it, and afterwards there is room again."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0)
    config = configuration(server.sockets[0].getsockname()[1], tmp_path, port=0, ops_port=0)
    config["server"]["max_connections"] = CAP
    async with server, served(config, tmp_path) as proxy, asyncio.timeout(PATIENCE_S):
        before = await Caller.connect(proxy.port)
        stream = loop.create_task(before.ask(payload("mock-100-20000", stream=True)))
        await until(lambda: before.answer.events > 0, "the stream begun", PATIENCE_S)

        made = await asyncio.gather(
            *(loop.create_connection(Connection, "127.0.0.1", proxy.port) for _ in range(STORM))
        )
        refused = STORM - (CAP - 1)
        ended = [connection for _, connection in made]
        await until(lambda: sum(one.is_ended for one in ended) >= refused, "the refusals", PATIENCE_S)

        answer = await stream
        assert (answer.is_whole, answer.tail.endswith(b"data: [DONE]\n\n")) == (True, True)
        # no more are refused than there was no room for, and none of those without a word
        said = Counter(one.refusal() for one in ended if one.is_ended)
        assert said == {(503, "too_many_connections", "1"): refused}
        assert all(one.received == b"" for one in ended if not one.is_ended)

        for transport, _ in made:
            transport.abort()
        before.close()
        await served_again(proxy.port)
        server.close()


async def served_again(port: int) -> None:
    """Ask until there is room; the worker may not have noticed yet that all have left."""
    while True:
        caller = await Caller.connect(port)
        answer = await caller.ask(payload("mock-1-0", stream=False))
        caller.close()
        if answer.status == 200:
            return
        assert answer.status == 503, "a refusal that came as a reset"
