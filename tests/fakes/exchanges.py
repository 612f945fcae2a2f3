"""Requests and responses that tests of the upstream side use again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psutil

from proxy.upstream.attempt import UpstreamRequest, attempt
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.tasks import BackgroundTasks
    from proxy.upstream.pool import UpstreamPool
    from proxy.upstream.stream import UpstreamStream
    from tests.fakes.raw_upstream import RawPeer, RawUpstream

GET = UpstreamRequest(b"GET", b"/v1/models", [(b"Host", b"upstream.test")])
POST = UpstreamRequest(b"POST", b"/v1/chat/completions", [(b"Host", b"upstream.test")], b'{"stream": true}')
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
_TURNS = 50
_LONG_S = 25.0
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def start(
    pool: UpstreamPool,
    tasks: BackgroundTasks,
    request: UpstreamRequest = GET,
    *,
    first_byte_s: float | None = None,
) -> asyncio.Task[UpstreamStream]:
    """Begin an attempt in a task of its own."""
    return asyncio.get_running_loop().create_task(attempt(pool, request, first_byte_s=first_byte_s, tasks=tasks))


async def read_all(stream: UpstreamStream) -> bytes:
    body = b""
    while data := await stream.read():
        body += data
    return body


async def turns_until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until the condition holds; what takes more of them is looked for as `until` does."""
    for _ in range(_TURNS):
        if condition():
            return
        await asyncio.sleep(0)
    await until(condition, "what turns of the loop bring", _LONG_S)


def descriptors() -> int:
    return psutil.Process().num_fds()


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
