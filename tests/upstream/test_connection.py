"""What holds on the wire whoever uses it: bounded memory, an end that the peer sees at once, nothing left open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import UPSTREAM_PROTOCOL_ERROR, ProxyError
from proxy.upstream.connect import Origin, tls_context
from proxy.upstream.connection import MAX_WAITING_BYTES, READ_BUFFER_BYTES
from proxy.upstream.pool import UpstreamPool
from tests.fakes.exchanges import CHUNKED, HELLO, OK, POST, read_all, start, turns_until
from tests.fakes.raw_upstream import RawUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.tasks import BackgroundTasks
    from proxy.upstream.stream import UpstreamStream
    from tests.fakes.raw_upstream import RawPeer
    from tests.upstream.conftest import Certificates

FLOOD_BYTES = 64 * 1024 * 1024


Wired = tuple[RawUpstream, UpstreamPool]


@pytest.fixture(params=["tcp", "tls"])
async def wired(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Wired]:
    """An upstream and a pool for it, over plain TCP and over TLS."""
    secure = request.param == "tls"
    context = tls_context(verify=True, ca=certificates.ca_file, client_certificate=None, client_key=None)
    with RawUpstream(certificates.server if secure else None) as upstream:
        pool = UpstreamPool(Origin(upstream.host, upstream.port, tls=context if secure else None), connect_timeout_s=5)
        yield upstream, pool
        for connection in list(pool._open):
            connection.abort()


async def streaming(wired: Wired, tasks: BackgroundTasks, response: bytes) -> tuple[UpstreamStream, RawPeer]:
    upstream, pool = wired
    attempting = start(pool, tasks, POST)
    peer = await upstream.accept()
    await peer.answer(response)
    return await attempting, peer


async def test_an_exchange_and_another_on_the_same_connection(wired: Wired, tasks: BackgroundTasks) -> None:
    upstream, pool = wired
    stream, peer = await streaming(wired, tasks, HELLO)
    assert await read_all(stream) == b"hello"
    stream.close()
    attempting = start(pool, tasks)
    await peer.answer(CHUNKED + b"3\r\nyou\r\n0\r\n\r\n")
    stream = await attempting
    assert stream.reused
    assert await read_all(stream) == b"you"
    stream.close()
    assert len(upstream.peers) == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_many_reads_arrives_as_it_was_sent(
    wired: Wired, tasks: BackgroundTasks, *, chunked: bool
) -> None:
    body = bytes(range(256)) * 16_384
    stream, peer = await streaming(wired, tasks, CHUNKED if chunked else OK + b"Content-Length: %d\r\n\r\n" % len(body))
    wire = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    sending = asyncio.get_running_loop().create_task(peer.send(wire))
    assert await read_all(stream) == body
    assert stream.received_bytes == len(body)
    await sending
    stream.close()
    assert wired[1].idle == 1


@pytest.mark.parametrize("read_the_head", [True, False])
@pytest.mark.parametrize("piece", [b"x" * 65536, b"xy"])
async def test_a_flood_that_nobody_reads_is_bounded(
    wired: Wired, tasks: BackgroundTasks, piece: bytes, *, read_the_head: bool
) -> None:
    """What waits stays below two reads, and the upstream is held up by what the kernels hold."""
    upstream, pool = wired
    attempting = start(pool, tasks, POST)
    peer = await upstream.accept()
    await peer.answer(CHUNKED)
    stream = await attempting if read_the_head else None
    sent = 0
    chunks = (b"%x\r\n%b\r\n" % (len(piece), piece)) * (65536 // len(piece))

    async def flood() -> None:
        nonlocal sent
        while sent < FLOOD_BYTES:
            await peer.send(chunks)
            sent += 65536

    flooding = asyncio.get_running_loop().create_task(flood())
    [connection] = pool._open
    await turns_until(lambda: connection._reading_paused)
    before = -1
    while sent != before:  # until the kernels are full
        before = sent
        for _ in range(50):
            await asyncio.sleep(0)
    assert sent < FLOOD_BYTES // 2
    stream = stream or await attempting
    assert MAX_WAITING_BYTES < len(stream._reader.body) <= MAX_WAITING_BYTES + READ_BUFFER_BYTES
    assert stream.received_bytes == len(stream._reader.body)
    # and it goes on, byte for byte, once someone reads
    body = b""
    while len(body) < 1_000_000:
        body += await stream.read()
    assert body == (piece * (len(body) // len(piece) + 1))[: len(body)]
    stream.abort()
    flooding.cancel()
    with pytest.raises((asyncio.CancelledError, ConnectionError)):
        await flooding


async def test_what_is_not_decrypted_yet_is_bounded(certificates: Certificates, tasks: BackgroundTasks) -> None:
    context = tls_context(verify=True, ca=certificates.ca_file, client_certificate=None, client_key=None)
    with RawUpstream(certificates.server) as upstream:
        pool = UpstreamPool(Origin(upstream.host, upstream.port, tls=context), connect_timeout_s=5)
        stream, peer = await streaming((upstream, pool), tasks, CHUNKED)
        flooding = asyncio.get_running_loop().create_task(peer.send(b"%x\r\n" % FLOOD_BYTES + bytes(FLOOD_BYTES)))
        [connection] = pool._open
        assert connection._tls is not None
        most = 0
        while stream.received_bytes < FLOOD_BYTES // 8:
            await turns_until(lambda: connection._reading_paused)
            most = max(most, connection._tls._incoming.pending)
            stream.read_nowait()
        assert 0 < most <= READ_BUFFER_BYTES
        stream.abort()
        with pytest.raises(ConnectionError):
            await flooding


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("size", [1_000, 32_768, 60_000, 200_000])
async def test_nothing_is_lost_when_the_upstream_closes_right_behind_its_response(
    wired: Wired, tasks: BackgroundTasks, size: int, *, clean: bool
) -> None:
    """Also while nobody reads: what was sent before the end is handed out before the end."""
    body = bytes(range(250)) * (size // 250)
    stream, peer = await streaming(wired, tasks, OK + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    await peer.send(body)
    await peer.bye() if clean and peer.tls else peer.close()
    for _ in range(20):
        await asyncio.sleep(0)
    assert await read_all(stream) == body
    stream.close()
    assert wired[1].open == 0


async def test_an_abort_is_seen_within_50_ms(wired: Wired, tasks: BackgroundTasks) -> None:
    """Silent streams and floods alike; the best of many, because the machine may be busy."""
    seen_s: dict[bytes, float] = {}
    for flood in (b"", bytes(FLOOD_BYTES)) * 10:
        stream, peer = await streaming(wired, tasks, CHUNKED + b"%x\r\n" % FLOOD_BYTES + b"x")
        assert await stream.read() == b"x"
        sending = asyncio.get_running_loop().create_task(peer.send(flood))
        await asyncio.sleep(0)
        began = time.perf_counter()
        stream.close()
        await asyncio.gather(sending, return_exceptions=True)
        await peer.ended()
        seen_s[flood] = min(time.perf_counter() - began, seen_s.get(flood, 1.0))
        if max(seen_s.values()) < 0.05 and len(seen_s) == 2:
            break
    assert max(seen_s.values()) < 0.05
    assert wired[1].open == 0


async def test_a_tls_end_without_close_notify_is_a_truncation(
    certificates: Certificates, tasks: BackgroundTasks
) -> None:
    """RFC 9112 section 9.8: of a body that only the end delimits; the others carry their own end."""
    context = tls_context(verify=True, ca=certificates.ca_file, client_certificate=None, client_key=None)
    with RawUpstream(certificates.server) as upstream:
        pool = UpstreamPool(Origin(upstream.host, upstream.port, tls=context), connect_timeout_s=5)
        stream, peer = await streaming((upstream, pool), tasks, OK + b"\r\nsomething")
        assert await stream.read() == b"something"
        await peer.bye()
        assert await stream.read() == b""
        assert stream.close_delimited
        stream.close()
        stream, peer = await streaming((upstream, pool), tasks, OK + b"\r\nsomething")
        assert await stream.read() == b"something"
        peer.close()
        with pytest.raises(ProxyError) as raised:
            await stream.read()
        assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR
        stream.close()
        assert pool.open == 0


async def test_bytes_behind_a_large_response_that_nobody_read_are_noticed(wired: Wired, tasks: BackgroundTasks) -> None:
    stream, peer = await streaming(wired, tasks, OK + b"Content-Length: 24000\r\n\r\n" + bytes(24_000))
    await peer.send(b"\r\n")
    await turns_until(lambda: wired[1].open == 0)
    assert await read_all(stream) == bytes(24_000)
    stream.close()


async def test_a_large_response_that_nobody_read_leaves_its_connection_usable(
    wired: Wired, tasks: BackgroundTasks
) -> None:
    stream, peer = await streaming(wired, tasks, OK + b"Content-Length: 24000\r\n\r\n" + bytes(24_000))
    await turns_until(lambda: len(stream._reader.body) == 24_000)
    stream.close()
    attempting = start(wired[1], tasks)
    await peer.answer(HELLO)
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()


async def test_a_departing_tls_upstream_leaves_the_pool(wired: Wired, tasks: BackgroundTasks) -> None:
    stream, peer = await streaming(wired, tasks, HELLO)
    await read_all(stream)
    stream.close()
    assert wired[1].idle == 1
    await peer.bye() if peer.tls else peer.close()
    await turns_until(lambda: wired[1].open == 0)


async def test_two_tasks_may_not_read_one_stream(wired: Wired, tasks: BackgroundTasks) -> None:
    stream, _ = await streaming(wired, tasks, CHUNKED)
    first = asyncio.get_running_loop().create_task(stream.read())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="two tasks"):
        await stream.read()
    first.cancel()
    stream.close()
