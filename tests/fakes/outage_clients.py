"""Clients of a proxy whose ledger fails: streams that were begun before, and requests that must be refused."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Self, cast

from proxy.stores.database import open_database
from tests.fakes.client import RecordingClient
from tests.fakes.ledgers import away, rows
from tests.fakes.line import CHAT_REQUEST, JSON_TYPE, LAST_CHUNK, Line, chunk, head
from tests.fakes.recordings import DONE, FINISH, ROLE, delta
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from tests.fakes.client import Answer
    from tests.fakes.raw_upstream import RawPeer, RawUpstream
    from tests.fakes.running import Running
    from tests.fakes.served import Served

_REST: Final = [delta("a"), delta("b"), FINISH + DONE]
# what `store_unavailable` may take: the 5 seconds a ledger is waited for, and a slow machine
_REFUSED_WITHIN_S: Final = LONG_S


async def readiness(ops_port: int) -> tuple[int, list[str]]:
    """What `/readyz` says."""
    async with await RecordingClient.connect(ops_port) as client:
        answer = await client.ask("GET", "/readyz", key=None)
    return answer.status, answer.json["why"]


async def is_ready(ops_port: int) -> bool:
    """Whether nothing keeps the proxy from being ready."""
    return await readiness(ops_port) == (200, [])


async def queue_length(ops_port: int) -> float:
    """What `sluice_ledger_queue` shows."""
    async with await RecordingClient.connect(ops_port) as client:
        answer = await client.ask("GET", "/metrics", key=None)
    return float(answer.body.decode().partition("\nsluice_ledger_queue ")[2].split("\n")[0])


def check_refused(answer: Answer) -> None:
    """A whole 503 that says when to come back, and not a byte of an upstream's."""
    assert (answer.status, answer.error["code"], answer.whole) == (503, "store_unavailable", True)
    assert answer.header("retry-after") == "3"
    assert answer.header("retry-after-ms") == "3000"
    assert set(answer.json) == {"error"}


class Clients:
    """Clients of one proxy before one scripted upstream, each on a connection of its own. An async context manager."""

    def __init__(self, upstream: RawUpstream, proxy: Running | Served) -> None:
        self._upstream = upstream
        self._proxy = cast("Running", proxy)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def another(self) -> Line:
        client = await self._stack.enter_async_context(await RecordingClient.connect(self._proxy.port))
        return Line(self._upstream, self._proxy, client)

    async def streaming(self) -> tuple[Line, RawPeer, Answer]:
        """A stream whose client has its first event, so that its row is durable."""
        own = await self.another()
        peer, answer = await own.begun()
        await peer.send(chunk(ROLE))
        assert await own.piece(answer) == ROLE
        return own, peer, answer

    async def refused_at_once(self) -> Answer:
        """Ask, and see that no upstream is asked."""
        own = await self.another()
        own.client.send("POST", "/v1/chat/completions", CHAT_REQUEST, headers=(JSON_TYPE,))
        asked = len(own.upstream.peers)
        answer = await asyncio.wait_for(own.client.answer(), _REFUSED_WITHIN_S)
        check_refused(answer)
        assert len(own.upstream.peers) == asked
        return answer

    async def refused_after_the_upstream_answered(self) -> Answer:
        """Ask the first question of an outage: nobody knows of it yet, so the upstream is asked, and answers."""
        own = await self.another()
        peer = await own.open()
        await peer.send(head() + chunk(ROLE))
        answer = await asyncio.wait_for(own.client.answer(), _REFUSED_WITHIN_S)
        check_refused(answer)
        await asyncio.wait_for(peer.ended(), _REFUSED_WITHIN_S)
        return answer


async def finish(own: Line, peer: RawPeer, answer: Answer) -> None:
    """Let a stream run to its end, and see that the client gets it."""
    for piece in _REST:
        await peer.send(chunk(piece))
    await peer.send(LAST_CHUNK)
    while await own.piece(answer):
        continue
    assert answer.whole
    assert answer.body == ROLE + b"".join(_REST)


def id_of(answer: Answer) -> str:
    found = answer.header("x-sluice-id")
    assert found is not None
    return found


def written(url: str) -> dict[str, dict[str, Any]]:
    """The rows of a ledger."""
    engine = away(lambda: open_database(url))
    found = rows(engine)
    away(engine.dispose)
    return found
