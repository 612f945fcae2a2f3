"""Which connections are kept, for how long, and which are never used again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.upstream.pool import Origin, UpstreamPool
from tests.fakes.exchanges import CHUNKED, GET, HELLO, OK, read_all, start, turns_until

if TYPE_CHECKING:
    from proxy.tasks import BackgroundTasks
    from proxy.upstream.stream import UpstreamStream
    from tests.fakes.raw_upstream import RawPeer, RawUpstream


async def exchange(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, response: bytes, peer: RawPeer | None = None
) -> tuple[UpstreamStream, RawPeer]:
    attempting = start(pool, tasks, GET)
    peer = peer or await upstream.accept()
    await peer.answer(response)
    stream = await attempting
    await read_all(stream)
    return stream, peer


async def test_a_connection_is_used_again(pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks) -> None:
    stream, peer = await exchange(pool, upstream, tasks, HELLO)
    stream.close()
    for response in (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", OK + b"content-length: 0\r\n\r\n", HELLO):
        stream, _ = await exchange(pool, upstream, tasks, response, peer)
        assert stream.reused
        stream.close()
    assert (pool.idle, pool.open, len(upstream.peers)) == (1, 1, 1)


async def test_the_connection_used_last_is_used_next(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    first, _ = await exchange(pool, upstream, tasks, HELLO)
    second, last_peer = await exchange(pool, upstream, tasks, HELLO)
    first.close()
    second.close()
    assert pool.idle == 2
    await exchange(pool, upstream, tasks, HELLO, last_peer)


@pytest.mark.parametrize(
    "response",
    [
        HELLO + b"\r\n",
        HELLO + b"x",
        HELLO + HELLO,
        CHUNKED + b"0\r\n\r\n\r\n",
        CHUNKED + b"0\r\n\r\n" + HELLO,
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Keep-Alive: timeout=1\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_some_connections_are_never_used_again(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, response: bytes
) -> None:
    stream, peer = await exchange(pool, upstream, tasks, response)
    assert stream.complete
    stream.close()
    assert (pool.idle, pool.open) == (0, 0)
    await peer.ended()


@pytest.mark.parametrize("how", ["close", "reset", "byte"])
async def test_an_idle_connection_that_stirs_leaves_the_pool(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, how: str
) -> None:
    stream, peer = await exchange(pool, upstream, tasks, HELLO)
    stream.close()
    assert pool.idle == 1
    if how == "byte":
        await peer.send(b"\n")
    else:
        getattr(peer, how)()
    await turns_until(lambda: pool.open == 0)
    assert pool.idle == 0


async def test_bytes_the_loop_has_not_seen_yet_are_not_the_next_response(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    """They are in the kernel when the connection is asked for, and the loop had no turn to read them."""
    stream, peer = await exchange(pool, upstream, tasks, HELLO)
    stream.close()
    peer.sock.send(HELLO)
    attempting = start(pool, tasks)
    second = await upstream.accept()
    await second.answer(OK + b"Content-Length: 4\r\n\r\nmine")
    assert await read_all(await attempting) == b"mine"


async def test_idle_connections_are_closed_in_time(upstream: RawUpstream, tasks: BackgroundTasks) -> None:
    pool = UpstreamPool(Origin(upstream.host, upstream.port), connect_timeout_s=5, idle_s=0.05)
    peers = []
    streams = []
    for _ in range(3):
        stream, peer = await exchange(pool, upstream, tasks, HELLO)
        streams.append(stream)
        peers.append(peer)
    for stream in streams:
        stream.close()
    assert (pool.idle, pool.open) == (3, 3)
    for peer in peers:
        await peer.ended()
    assert (pool.idle, pool.open) == (0, 0)


async def test_the_upstream_may_say_how_long_it_waits(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    now = asyncio.get_running_loop().time()
    for told, kept_s in ((b"timeout=72", 60), (b"timeout=11", 10), (b"max=4", 4)):
        response = OK + b"Keep-Alive: " + told + b"\r\nContent-Length: 5\r\n\r\nhello"
        peer = upstream.peers[0] if upstream.peers else None
        stream, peer = await exchange(pool, upstream, tasks, response, peer)
        stream.close()
        [good_until] = pool._idle.values()
        assert kept_s <= good_until - now < kept_s + 2


async def test_an_expired_connection_is_not_used_even_if_it_was_not_swept(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    stream, peer = await exchange(pool, upstream, tasks, HELLO)
    stream.close()
    [connection] = pool._idle
    pool._idle[connection] = asyncio.get_running_loop().time()
    stream, _ = await exchange(pool, upstream, tasks, HELLO)
    assert not stream.reused
    await peer.ended()


async def test_fresh_passes_by_what_is_idle(pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks) -> None:
    stream, _ = await exchange(pool, upstream, tasks, HELLO)
    stream.close()
    connection = await pool.acquire(fresh=True)
    assert connection.exchanges == 0
    assert (pool.idle, pool.open) == (1, 2)
    connection.abort()
    assert (pool.idle, pool.open) == (1, 1)


async def test_a_closed_pool_keeps_nothing(pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks) -> None:
    in_use, peer_in_use = await exchange(pool, upstream, tasks, HELLO)
    idle, peer_idle = await exchange(pool, upstream, tasks, HELLO)
    idle.close()
    pool.close()
    await peer_idle.ended()
    assert pool.open == 1
    in_use.close()
    await peer_in_use.ended()
    assert pool.open == 0


def test_the_repr_brackets_ipv6_and_shows_no_credentials() -> None:
    async def shown() -> str:
        return repr(UpstreamPool(Origin("::1", 443), connect_timeout_s=1))

    assert asyncio.run(shown()) == "<UpstreamPool [::1]:443, 0 idle, 0 open>"
