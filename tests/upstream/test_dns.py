"""A name whose addresses change: each fresh connection asks anew, a kept-alive one stays where it is for its idle time.

Nothing is cached here: the resolver knows how long an answer holds. A connection to an address that the name no longer
has goes on serving while it is used often; it is given up when it idles, when it is old, or when that server closes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import UPSTREAM_CONNECT_TIMEOUT, UPSTREAM_UNREACHABLE, ProxyError
from proxy.upstream.connect import Origin
from proxy.upstream.pool import UpstreamPool
from tests.fakes.exchanges import HELLO, POST, read_all, start, turns_until
from tests.fakes.names import Names
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.reaching import unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.tasks import BackgroundTasks
    from tests.fakes.raw_upstream import RawPeer

_ORIGIN = Origin("models.test", 443)


@pytest.fixture
def servers() -> Iterator[tuple[RawUpstream, RawUpstream]]:
    """Where the name points first, and where later."""
    with RawUpstream() as old, RawUpstream() as new:
        yield old, new


def at(server: RawUpstream) -> tuple[str, int]:
    return server.host, server.port


async def served(pool: UpstreamPool, tasks: BackgroundTasks, by: RawUpstream | RawPeer) -> RawPeer:
    """One exchange, which goes to a new connection of a server, or over the one that a peer has."""
    attempting = start(pool, tasks, POST)
    peer = await by.accept() if isinstance(by, RawUpstream) else by
    await peer.answer(HELLO)
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()
    return peer


async def test_a_fresh_connection_goes_to_the_new_address(
    servers: tuple[RawUpstream, RawUpstream], tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is used while it is kept alive; what is needed beside it goes to the new address at once."""
    old, new = servers
    names = Names(monkeypatch, at(old))
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5)
    kept = await served(pool, tasks, old)
    names.addresses = (at(new),)
    await served(pool, tasks, kept)
    busy = start(pool, tasks, POST)
    await kept.request()
    await served(pool, tasks, new)
    assert names.asked == 2
    await kept.send(HELLO)
    (await busy).close()
    pool.close()


async def test_an_idle_connection_to_the_old_address_is_given_up(
    servers: tuple[RawUpstream, RawUpstream], tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its idle time, so that a change is complete within seconds of an exchange's end."""
    old, new = servers
    names = Names(monkeypatch, at(old))
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5, idle_s=0.01)
    kept = await served(pool, tasks, old)
    names.addresses = (at(new),)
    await kept.ended()
    assert pool.open == 0
    await served(pool, tasks, new)
    pool.close()


async def test_an_old_server_that_closes_sends_everybody_to_the_new_one(
    servers: tuple[RawUpstream, RawUpstream], tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the request that it closed upon: sent again once, to where the name points now."""
    old, new = servers
    names = Names(monkeypatch, at(old))
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5)
    kept = await served(pool, tasks, old)
    names.addresses = (at(new),)
    attempting = start(pool, tasks, POST)
    await kept.request()
    kept.close()
    assert (await (await new.accept()).answer(HELLO)).endswith(POST.body)  # type: ignore[arg-type]
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()
    assert names.asked == 2
    pool.close()


async def test_a_name_that_is_gone_for_a_while(
    servers: tuple[RawUpstream, RawUpstream], tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is connected goes on; what must connect is unreachable, until the name is back."""
    old, _ = servers
    names = Names(monkeypatch, at(old))
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5)
    kept = await served(pool, tasks, old)
    names.addresses = ()
    await served(pool, tasks, kept)
    with pytest.raises(ProxyError) as raised:
        await pool.acquire(fresh=True)
    assert raised.value.kind is UPSTREAM_UNREACHABLE
    names.addresses = (at(old),)
    fresh = await pool.acquire(fresh=True)
    fresh.abort()
    pool.close()


async def test_a_resolver_that_does_not_answer(
    servers: tuple[RawUpstream, RawUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is that of connecting."""
    names = Names(monkeypatch, at(servers[0]))
    names.silent = True
    await unreachable(_ORIGIN, UPSTREAM_CONNECT_TIMEOUT, connect_timeout_s=0.05)
    names.silent = False
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5)
    (await pool.acquire()).abort()
    await turns_until(lambda: pool.open == 0)


async def test_many_at_once_each_go_to_where_the_name_points(
    servers: tuple[RawUpstream, RawUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change in the middle of a burst: those that asked before it are at the old address, the others at the new."""
    old, new = servers
    names = Names(monkeypatch, at(old))
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5)
    before = await asyncio.gather(*(pool.acquire() for _ in range(5)))
    names.addresses = (at(new),)
    after = await asyncio.gather(*(pool.acquire() for _ in range(5)))
    assert names.asked == 10
    ports = [connection.transport.get_extra_info("peername")[1] for connection in (*before, *after)]
    assert ports == [old.port] * 5 + [new.port] * 5
    for connection in (*before, *after):
        connection.abort()
    pool.close()


async def test_a_busy_connection_to_the_old_address_is_given_up_when_it_is_old(
    servers: tuple[RawUpstream, RawUpstream], tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = servers
    names = Names(monkeypatch, at(old))
    pool = UpstreamPool(_ORIGIN, connect_timeout_s=5)
    kept = await served(pool, tasks, old)
    names.addresses = (at(new),)
    await served(pool, tasks, kept)
    monkeypatch.setattr("proxy.upstream.pool.MAX_AGE_S", 0.0)
    await served(pool, tasks, kept)
    await kept.ended()
    await served(pool, tasks, new)
    pool.close()
