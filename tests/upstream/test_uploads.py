"""Bodies that stream upstream: sent as they come, never held, and never whole unless they are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import BAD_REQUEST, UPSTREAM_STALE, UPSTREAM_TIMEOUT, ProxyError
from proxy.upstream.attempt import UpstreamRequest
from tests.fakes.exchanges import CHUNKED, HELLO, read_all, start, turns_until, used_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.tasks import BackgroundTasks
    from proxy.upstream.connection import UpstreamConnection
    from proxy.upstream.pool import UpstreamPool
    from tests.fakes.raw_upstream import RawUpstream


async def pieces(*parts: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if then is not None:
        raise then


def upload(body: AsyncIterator[bytes] | bytes, content_length: int | None = None) -> UpstreamRequest:
    return UpstreamRequest(b"POST", b"/v1/files", [], body, content_length)


async def test_a_streamed_body_is_sent_in_chunks(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks, upload(pieces(b"one", b"", b"twenty-one bytes more")))
    peer = await upstream.accept()
    sent = await peer.answer(HELLO)
    assert sent == (
        b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\none\r\n15\r\ntwenty-one bytes more\r\n0\r\n\r\n"
    )
    stream = await attempting
    await turns_until(lambda: len(tasks) == 0)
    stream.close()
    assert pool.idle == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_body_arrives_whole(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, *, streamed: bool
) -> None:
    body = bytes(range(256)) * 4 * 4096
    parts = [body[:1_500_000], body[1_500_000:]]
    attempting = start(pool, tasks, upload(pieces(*parts), len(body)) if streamed else upload(body))
    peer = await upstream.accept()
    sent = await peer.answer(HELLO)
    assert sent == b"POST /v1/files HTTP/1.1\r\nContent-Length: 4194304\r\n\r\n" + body
    stream = await attempting
    stream.close()
    assert pool.idle == 1


@pytest.mark.parametrize("parts", [(b"1234",), (b"123", b"456"), ()])
async def test_a_body_of_another_length_than_announced_never_looks_whole(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, parts: tuple[bytes, ...]
) -> None:
    attempting = start(pool, tasks, upload(pieces(*parts), 5))
    peer = await upstream.accept()
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is BAD_REQUEST
    with pytest.raises(ConnectionError):
        await peer.request()


class ClientLeftError(Exception):
    """Raised by a body whose client left."""


async def test_a_body_that_breaks_off_is_told_and_never_looks_whole(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks, upload(pieces(b"part", then=ClientLeftError())))
    peer = await upstream.accept()
    with pytest.raises(ClientLeftError):
        await attempting
    with pytest.raises(ConnectionError):
        await peer.request()
    assert pool.open == 0


async def test_a_stale_connection_is_not_replaced_when_part_of_the_body_is_used_up(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    peer = await used_once(pool, upstream, tasks)
    attempting = start(pool, tasks, upload(pieces(b"part")))
    await peer.request()
    peer.close()
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is UPSTREAM_STALE


async def endless(produced: list[int]) -> AsyncIterator[bytes]:
    while True:
        produced[0] += 65536
        yield bytes(65536)


async def test_an_upload_waits_for_the_upstream(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    """The upstream reads nothing: what the kernel does not take stays with the client, and silence ends it."""
    produced = [0]
    attempting = start(pool, tasks, upload(endless(produced)), first_byte_s=0.5)
    await upstream.accept()
    [connection] = [connection async for connection in opened(pool)]
    kept = 0
    while not attempting.done():
        kept = max(kept, connection.transport.get_write_buffer_size())
        await asyncio.sleep(0)
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is UPSTREAM_TIMEOUT
    assert kept <= 2 * 65536 + 100
    assert produced[0] < 32 * 1024 * 1024


async def opened(pool: UpstreamPool) -> AsyncIterator[UpstreamConnection]:
    await turns_until(lambda: pool.open == 1)
    for connection in pool._open:
        yield connection


async def test_a_refusal_in_the_middle_of_an_upload_is_handed_out_and_the_upload_stops(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    produced = [0]
    attempting = start(pool, tasks, upload(endless(produced)))
    peer = await upstream.accept()
    await peer.recv()
    await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nover")
    stream = await attempting
    assert stream.head.status == 413
    assert await read_all(stream) == b"over"
    await turns_until(lambda: len(tasks) == 0)
    stream.close()
    assert pool.open == 0
    await peer.ended()


async def test_an_upload_goes_on_beside_an_early_success(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    rest = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await rest.wait()
        yield b"last"

    attempting = start(pool, tasks, upload(body(), 9))
    peer = await upstream.accept()
    sent = await peer.recv()
    await peer.send(CHUNKED)
    stream = await attempting
    rest.set()
    while not sent.endswith(b"firstlast"):
        sent += await peer.recv()
    await peer.send(b"2\r\nok\r\n0\r\n\r\n")
    assert await read_all(stream) == b"ok"
    stream.close()
    assert pool.idle == 1


async def test_a_slow_client_is_not_the_upstreams_silence(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    loop = asyncio.get_running_loop()
    waited = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        loop.call_later(0.6, waited.set)
        await waited.wait()
        yield b"last"

    attempting = start(pool, tasks, upload(body()), first_byte_s=0.5)
    peer = await upstream.accept()
    await peer.answer(HELLO)
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()
