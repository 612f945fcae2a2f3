"""One attempt over real sockets: what the upstream does on the wire, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import (
    BAD_REQUEST,
    INTERNAL,
    UPSTREAM_PROTOCOL_ERROR,
    UPSTREAM_STALE,
    UPSTREAM_TIMEOUT,
    ProxyError,
)
from proxy.upstream.attempt import UpstreamRequest, attempt
from tests.fakes.exchanges import CHUNKED, GET, HELLO, OK, POST, read_all, start, turns_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.tasks import BackgroundTasks
    from proxy.upstream.connection import UpstreamConnection
    from proxy.upstream.pool import UpstreamPool
    from tests.fakes.raw_upstream import RawPeer, RawUpstream


async def used_once(pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks) -> RawPeer:
    """The upstream's side of a connection that has carried one exchange and is idle."""
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(HELLO)
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()
    assert pool.idle == 1
    return peer


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (GET, b"GET /v1/models HTTP/1.1\r\nHost: upstream.test\r\n\r\n"),
        (
            POST,
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: 16\r\n\r\n" + POST.body,  # type: ignore[operator]
        ),
        (UpstreamRequest(b"POST", b"/", []), b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        (UpstreamRequest(b"DELETE", b"/x", [], b"y"), b"DELETE /x HTTP/1.1\r\nContent-Length: 1\r\n\r\ny"),
    ],
)
async def test_the_request_on_the_wire(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, request_: UpstreamRequest, expected: bytes
) -> None:
    attempting = start(pool, tasks, request_)
    peer = await upstream.accept()
    assert await peer.answer(OK + b"X-A: 1\r\nx-a: 2\r\nContent-Length: 5\r\n\r\nhello") == expected
    stream = await attempting
    assert (stream.head.status, stream.head.reason) == (200, b"OK")
    assert stream.head.headers == [(b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Length", b"5")]
    assert await stream.read() == b"hello"
    assert (stream.complete, stream.received_bytes, stream.reused, stream.close_delimited) == (True, 5, False, False)
    assert await stream.read() == b""
    stream.close()
    stream.close()
    assert repr(pool) == f"<UpstreamPool 127.0.0.1:{upstream.port}, 1 idle, 1 open>"


@pytest.mark.parametrize("where", ["name", "value", "target"])
@pytest.mark.parametrize("injected", [b"a\r\nX: y", b"a\nX: y", b"a\r", b"a\0"])
async def test_a_header_cannot_smuggle_another(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, where: str, injected: bytes
) -> None:
    parts = {"name": b"n", "value": b"v", "target": b"/", where: injected}
    request = UpstreamRequest(b"GET", parts["target"], [(parts["name"], parts["value"])])
    with pytest.raises(ProxyError) as raised:
        await attempt(pool, request, first_byte_s=None, tasks=tasks)
    assert raised.value.kind is INTERNAL
    peer = await upstream.accept()
    assert await peer.recv() == b""


async def test_a_response_to_head_has_no_body(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks, UpstreamRequest(b"HEAD", b"/", []))
    await (await upstream.accept()).answer(OK + b"Content-Length: 5\r\n\r\n")
    stream = await attempting
    assert await stream.read() == b""
    stream.close()
    assert pool.idle == 1


async def test_chunks_are_handed_out_as_they_arrive(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks, POST)
    peer = await upstream.accept()
    await peer.answer(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED)
    stream = await attempting
    assert stream.read_nowait() == b""
    for piece in (b"data: 1\n\n", b"data: 2\n\n"):
        await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert await stream.read() == piece
    assert not stream.complete
    await peer.send(b"0\r\n\r\n")
    assert await stream.read() == b""
    assert stream.received_bytes == 18
    stream.close()
    assert (pool.idle, pool.open) == (1, 1)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("sent", [b"", b"HT", OK + b"Content-Le"])
async def test_an_end_before_the_head(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, sent: bytes, end: str
) -> None:
    attempting = start(pool, tasks, POST)
    peer = await upstream.accept()
    await peer.answer(sent)
    getattr(peer, end)()
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR
    assert raised.value.message.startswith("the upstream closed the connection")
    assert pool.open == 0
    if end == "reset":
        assert isinstance(raised.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    "sent", [OK + b"Content-Length: 9\r\n\r\nhello", CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"9\r\nhello"]
)
async def test_a_body_that_breaks_off(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, sent: bytes, end: str
) -> None:
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(sent)
    stream = await attempting
    assert await stream.read() == b"hello"
    getattr(peer, end)()
    for _ in range(2):
        with pytest.raises(ProxyError) as raised:
            await stream.read()
        assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR
    assert not stream.complete
    stream.close()
    assert pool.open == 0


async def test_a_malformed_chunk_ends_the_read_at_once_behind_the_bytes_before_it(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(CHUNKED + b"5\r\nhello\r\nnonsense\r\n")
    stream = await attempting
    assert await stream.read() == b"hello"
    with pytest.raises(ProxyError) as raised:
        await stream.read()
    assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR
    await peer.ended()
    stream.close()


async def test_a_body_without_framing_ends_cleanly_with_fin(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(OK + b"\r\nsomething")
    stream = await attempting
    assert await stream.read() == b"something"
    assert not stream.complete
    peer.close()
    assert await stream.read() == b""
    assert (stream.complete, stream.close_delimited) == (True, True)
    stream.close()
    assert pool.open == 0


async def test_a_body_without_framing_never_ends_cleanly_with_rst(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(OK + b"\r\nsomething")
    stream = await attempting
    assert await stream.read() == b"something"
    peer.reset()
    with pytest.raises(ProxyError):
        await stream.read()
    stream.close()


@pytest.mark.parametrize("sent", [b"", OK])
async def test_silence_ends_the_attempt(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, sent: bytes
) -> None:
    attempting = start(pool, tasks, POST, first_byte_s=0.05)
    peer = await upstream.accept()
    await peer.answer(sent)
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is UPSTREAM_TIMEOUT
    await peer.ended()
    assert pool.open == 0


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_stale_connection_is_replaced_once(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks, end: str
) -> None:
    peer = await used_once(pool, upstream, tasks)
    attempting = start(pool, tasks, POST)
    await peer.request()
    getattr(peer, end)()
    second = await upstream.accept()
    assert (await second.answer(HELLO)).endswith(b'{"stream": true}')
    stream = await attempting
    assert not stream.reused
    stream.close()
    attempting = start(pool, tasks, POST)
    await second.request()
    second.close()
    third = await upstream.accept()
    await third.request()
    third.close()
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR


async def test_a_kept_connection_that_gave_a_byte_is_not_replaced(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    peer = await used_once(pool, upstream, tasks)
    attempting = start(pool, tasks, POST)
    await peer.answer(b"H")
    peer.close()
    with pytest.raises(ProxyError) as raised:
        await attempting
    assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR


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
    attempting = start(pool, tasks, upload(endless(produced)), first_byte_s=0.2)
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
        loop.call_later(0.15, waited.set)
        await waited.wait()
        yield b"last"

    attempting = start(pool, tasks, upload(body()), first_byte_s=0.1)
    peer = await upstream.accept()
    await peer.answer(HELLO)
    stream = await attempting
    assert await read_all(stream) == b"hello"
    stream.close()


async def test_fail_hands_out_what_waits_then_raises(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(CHUNKED + b"5\r\nhello\r\n")
    stream = await attempting
    error = ProxyError(UPSTREAM_TIMEOUT, "the upstream stopped in the middle of its response")
    stream.fail(error)
    assert await stream.read() == b"hello"
    for _ in range(2):
        with pytest.raises(ProxyError) as raised:
            await stream.read()
        assert raised.value is error
    await peer.ended()
    stream.close()


async def test_fail_and_abort_wake_the_one_who_reads(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    for how in ("fail", "abort"):
        attempting = start(pool, tasks)
        peer = await upstream.accept()
        await peer.answer(CHUNKED)
        stream = await attempting
        reading = asyncio.get_running_loop().create_task(stream.read())
        await asyncio.sleep(0)
        if how == "fail":
            stream.fail(ProxyError(UPSTREAM_TIMEOUT, "too slow"))
        else:
            stream.abort()
            stream.abort()
        with pytest.raises(ProxyError) as raised:
            await reading
        assert raised.value.kind is (UPSTREAM_TIMEOUT if how == "fail" else INTERNAL)
        await peer.ended()
        stream.close()
    assert pool.open == 0


async def test_a_whole_response_can_be_read_after_its_connection_went_back(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    attempting = start(pool, tasks)
    peer = await upstream.accept()
    await peer.answer(HELLO)
    stream = await attempting
    await turns_until(lambda: stream.complete)
    stream.close()
    stream.fail(ProxyError(UPSTREAM_TIMEOUT, "too late to matter to the next exchange"))
    assert (pool.idle, pool.open) == (1, 1)
    assert await stream.read() == b"hello"
