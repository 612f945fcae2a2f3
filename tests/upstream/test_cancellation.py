"""Whenever the one who waits is cancelled, nothing stays open and the upstream sees the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxy.upstream.attempt import UpstreamRequest, attempt
from proxy.upstream.connect import Origin, ProxyAddress, tls_context
from proxy.upstream.pool import UpstreamPool
from tests.fakes.exchanges import CHUNKED, OK, POST, descriptors, start, turns_until
from tests.fakes.raw_upstream import FullListener, RawPeer, RawUpstream

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from proxy.tasks import BackgroundTasks
    from tests.upstream.conftest import Certificates


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return tls_context(verify=True, ca=certificates.ca_file, client_certificate=None, client_key=None)


async def cancelled(attempting: asyncio.Task[Any]) -> None:
    attempting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempting


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(65536)


async def stalled() -> AsyncIterator[bytes]:
    yield b"some"
    await asyncio.get_running_loop().create_future()


async def test_while_resolving(tasks: BackgroundTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def resolve(*args: object, **options: object) -> None:
        asked.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    pool = UpstreamPool(Origin("upstream.test", 443), connect_timeout_s=5)
    attempting = start(pool, tasks)
    await asked.wait()
    await cancelled(attempting)
    assert pool.open == 0


async def test_while_connecting(tasks: BackgroundTasks) -> None:
    with FullListener() as full:
        before = descriptors()
        pool = UpstreamPool(Origin("127.0.0.1", full.port), connect_timeout_s=5)
        attempting = start(pool, tasks)
        await turns_until(lambda: descriptors() > before)
        for _ in range(20):
            await asyncio.sleep(0)
        await cancelled(attempting)
        await turns_until(lambda: descriptors() <= before)


async def test_in_the_tls_handshake(upstream: RawUpstream, tasks: BackgroundTasks, trusting: ssl.SSLContext) -> None:
    pool = UpstreamPool(Origin(upstream.host, upstream.port, tls=trusting), connect_timeout_s=5)
    attempting = start(pool, tasks)
    peer = await upstream.accept_raw()
    assert (await peer.recv()).startswith(b"\x16\x03")
    await cancelled(attempting)
    await peer.ended()


async def test_while_the_outbound_proxy_is_silent(upstream: RawUpstream, tasks: BackgroundTasks) -> None:
    proxy = ProxyAddress(upstream.host, upstream.port)
    attempting = start(UpstreamPool(Origin("upstream.test", 443, proxy=proxy), connect_timeout_s=5), tasks)
    peer = await upstream.accept()
    await peer.request()
    await cancelled(attempting)
    await peer.ended()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("body", [endless, stalled])
async def test_in_an_upload(
    certificates: Certificates, tasks: BackgroundTasks, trusting: ssl.SSLContext, body: Any, *, secure: bool
) -> None:
    with RawUpstream(certificates.server if secure else None) as upstream:
        origin = Origin(upstream.host, upstream.port, tls=trusting if secure else None)
        pool = UpstreamPool(origin, connect_timeout_s=5)
        attempting = start(pool, tasks, UpstreamRequest(b"POST", b"/", [], body()))
        peer = await upstream.accept()
        assert await peer.recv()
        await cancelled(attempting)
        await peer.ended()
        await turns_until(lambda: len(tasks) == 0)
        assert pool.open == 0


async def test_in_an_upload_that_the_upstream_does_not_read(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    """What is unsent is dropped: the descriptor is free although the upstream never takes a byte."""
    attempting = start(pool, tasks, UpstreamRequest(b"POST", b"/", [], endless()))
    await upstream.accept()
    await turns_until(lambda: pool.open == 1)
    [connection] = pool._open
    await turns_until(lambda: connection._writing_paused)
    before = descriptors()
    await cancelled(attempting)
    await turns_until(lambda: descriptors() == before - 1)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("sent", [b"", OK, b"HTTP/1.1 103 Early\r\n\r\n"])
async def test_while_waiting_for_the_head(
    certificates: Certificates, tasks: BackgroundTasks, trusting: ssl.SSLContext, sent: bytes, *, secure: bool
) -> None:
    with RawUpstream(certificates.server if secure else None) as upstream:
        origin = Origin(upstream.host, upstream.port, tls=trusting if secure else None)
        pool = UpstreamPool(origin, connect_timeout_s=5)
        attempting = start(pool, tasks, POST)
        peer = await upstream.accept()
        await peer.answer(sent)
        for _ in range(5):
            await asyncio.sleep(0)
        await cancelled(attempting)
        await peer.ended()
        assert pool.open == 0


@pytest.mark.parametrize("secure", [False, True])
async def test_while_reading(
    certificates: Certificates, tasks: BackgroundTasks, trusting: ssl.SSLContext, *, secure: bool
) -> None:
    with RawUpstream(certificates.server if secure else None) as upstream:
        origin = Origin(upstream.host, upstream.port, tls=trusting if secure else None)
        pool = UpstreamPool(origin, connect_timeout_s=5)
        attempting = start(pool, tasks, POST)
        peer = await upstream.accept()
        await peer.answer(CHUNKED)
        stream = await attempting
        reading = asyncio.get_running_loop().create_task(stream.read())
        await asyncio.sleep(0)
        await cancelled(reading)
        stream.close()
        await peer.ended()
        assert pool.open == 0


@pytest.mark.parametrize("secure", [False, True])
async def test_at_every_turn_of_the_loop(
    certificates: Certificates, tasks: BackgroundTasks, trusting: ssl.SSLContext, *, secure: bool
) -> None:
    """Cancel after 0, 1, 2 … turns, until an exchange gets through whole; each time all descriptors are back."""
    loop = asyncio.get_running_loop()
    with RawUpstream(certificates.server if secure else None) as upstream:
        origin = Origin(upstream.host, upstream.port, tls=trusting if secure else None)
        pool = UpstreamPool(origin, connect_timeout_s=5)
        serving = loop.create_task(serve(upstream))
        before = descriptors()
        await exchange(pool, tasks)
        # whatever the loop opens once for itself is open now, and the exchange's two descriptors are about to close
        await turns_until(lambda: open_peers(upstream) == 0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert descriptors() - before <= 2
        before = descriptors()
        turns, through = 0, 0
        while through < 3:
            exchanging = loop.create_task(exchange(pool, tasks))
            for _ in range(turns):
                await asyncio.sleep(0)
            exchanging.cancel()
            [outcome] = await asyncio.gather(exchanging, return_exceptions=True)
            through += outcome is None
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            assert pool.open == 0
            await turns_until(lambda: descriptors() - open_peers(upstream) <= before)
            turns += 1
        assert turns > 10
        serving.cancel()


async def exchange(pool: UpstreamPool, tasks: BackgroundTasks) -> None:
    stream = await attempt(pool, POST, first_byte_s=5, tasks=tasks)
    try:
        while await stream.read():
            continue
    finally:
        stream.abort()


async def serve(upstream: RawUpstream) -> None:
    """Answer everyone, however they leave; the descriptors of those who left are closed."""
    loop = asyncio.get_running_loop()
    serving = set()
    while True:
        peer = await upstream.accept_raw()
        task = loop.create_task(serve_one(peer))
        serving.add(task)
        task.add_done_callback(serving.discard)


async def serve_one(peer: RawPeer) -> None:
    try:
        if peer.tls is not None:
            await peer.handshake()
        await peer.answer(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
        await peer.ended()
    except OSError:
        assert peer.sock.fileno() >= 0  # it left in the middle: which is what is tested
    finally:
        peer.close()


def open_peers(upstream: RawUpstream) -> int:
    return sum(peer.sock.fileno() >= 0 for peer in upstream.peers)
