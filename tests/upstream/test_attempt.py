"""One attempt over real sockets: what the upstream does on the wire, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import (
    INTERNAL,
    UPSTREAM_PROTOCOL_ERROR,
    UPSTREAM_TIMEOUT,
    ProxyError,
)
from proxy.upstream.attempt import UpstreamRequest, attempt
from tests.fakes.exchanges import CHUNKED, GET, HELLO, OK, POST, start, turns_until, used_once

if TYPE_CHECKING:
    from proxy.tasks import BackgroundTasks
    from proxy.upstream.pool import UpstreamPool
    from tests.fakes.raw_upstream import RawUpstream


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
    assert raised.value.message.startswith("The upstream closed the connection")
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


async def test_a_head_that_came_in_time_counts_however_late_the_loop_is(
    pool: UpstreamPool, upstream: RawUpstream, tasks: BackgroundTasks
) -> None:
    """The loop was busy when it came: the timer fires in the same turn in which the head is read."""
    attempting = start(pool, tasks, GET, first_byte_s=0.5)
    peer = await upstream.accept()
    await peer.request()
    peer.sock.send(OK + b"Content-Length: 10\r\n\r\nhello")
    time.sleep(0.7)
    stream = await attempting
    assert await stream.read() == b"hello"
    await peer.send(b"world")
    assert await stream.read() == b"world"
    stream.close()
