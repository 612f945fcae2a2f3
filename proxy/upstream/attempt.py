"""One try at one upstream: send the request, wait for the head, hand out the body.

A connection that was kept alive may have been closed by the upstream just as the request was sent. When it gave no
byte and the request can be sent again, the attempt does so once, on a fresh connection; any other repetition is policy
and is decided above.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.discreet import as_repr
from proxy.core.errors import BAD_REQUEST, INTERNAL, UPSTREAM_STALE, ProxyError
from proxy.upstream.stream import UpstreamStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from proxy.tasks import BackgroundTasks
    from proxy.upstream.connection import UpstreamConnection
    from proxy.upstream.framing import ResponseReader
    from proxy.upstream.pool import UpstreamPool
    from proxy.upstream.silence import Silence

MAX_SINGLE_WRITE_BYTES: Final = 1024 * 1024  # a larger body is sent piecewise: transports copy what they cannot send
PIECE_BYTES: Final = 64 * 1024
_BODY_NOT_EXPECTED: Final = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS"})  # RFC 9110 section 8.6


class UpstreamRequest(msgspec.Struct, frozen=True, eq=False):
    """A request as it is sent. `target` is the path and query; `headers` are all but those that frame the body.

    `content_length` belongs to a streamed body; without it, the body is sent chunked.
    """

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterable[bytes] = b""
    content_length: int | None = None

    def __repr__(self) -> str:
        return f"<UpstreamRequest {self.method!r}>"  # all else may hold credentials, or what users wrote

    __rich_repr__ = as_repr


async def attempt(
    pool: UpstreamPool,
    request: UpstreamRequest,
    *,
    first_byte_s: float | None,
    tasks: BackgroundTasks,
    connection: UpstreamConnection | None = None,
) -> UpstreamStream:
    """Send the request and wait for the final response head, at most `first_byte_s` seconds of upstream silence.

    It goes over `connection`, if the caller took one from the pool.

    Raises a `ProxyError` of kind UPSTREAM_UNREACHABLE or UPSTREAM_CONNECT_TIMEOUT (nothing was sent), UPSTREAM_TIMEOUT,
    UPSTREAM_PROTOCOL_ERROR, UPSTREAM_STALE (a kept-alive connection closed without a byte, and part of a streamed body
    is used up), BAD_REQUEST (a streamed body of another length than announced); or what a streamed body raised. When
    it raises or is cancelled, the connection is closed.
    """
    if connection is None:
        connection = await pool.acquire()
    body, silence = request.body, pool.silence
    while True:
        upload: asyncio.Task[None] | None = None
        reader = connection.begin(bodiless=request.method == b"HEAD")
        try:
            head = _encode_head(request)
            if isinstance(body, bytes) and len(body) <= MAX_SINGLE_WRITE_BYTES:
                connection.write(head + body)
                connection.request_sent = True
                if first_byte_s is not None:
                    silence.expect(connection, reader, first_byte_s)
            else:
                connection.write(head)
                patience = _Patience(silence, connection, reader, first_byte_s)
                upload = tasks.start(_upload(connection, reader, request, patience), "upload")
            while (response := reader.head) is None:
                await connection.changed()
            if upload is not None and response.status >= 300:
                upload.cancel()  # RFC 9112 section 9.5: it was answered without the rest
            return UpstreamStream(pool, connection, reader, response, upload, connection.exchanges > 1)
        except BaseException as error:
            connection.abort()
            if upload is not None:
                upload.cancel()
            is_stale = isinstance(error, ProxyError) and error.kind is UPSTREAM_STALE
            if not is_stale or not isinstance(body, bytes):
                raise
        finally:
            silence.heard(connection)
        connection = await pool.acquire(fresh=True)  # which cannot be stale: it ends here


class _Patience:
    """With an upstream that is sent a body: `limit_s` seconds to answer, from each moment in which it could go on."""

    __slots__ = ("_connection", "_limit_s", "_reader", "_silence")

    def __init__(
        self, silence: Silence, connection: UpstreamConnection, reader: ResponseReader, limit_s: float | None
    ) -> None:
        self._silence = silence
        self._connection = connection
        self._reader = reader
        self._limit_s = limit_s

    def restart(self) -> None:
        if self._limit_s is not None and self._reader.head is None and not self._connection.closed:
            self._silence.expect(self._connection, self._reader, self._limit_s)

    def stop(self) -> None:
        self._silence.heard(self._connection)


def _encode_head(request: UpstreamRequest) -> bytes:
    body = request.body
    lines = [b"%b %b HTTP/1.1" % (request.method, request.target), *map(b": ".join, request.headers)]
    if isinstance(body, bytes):
        if body or request.method not in _BODY_NOT_EXPECTED:
            lines.append(b"Content-Length: %d" % len(body))
    elif request.content_length is None:
        lines.append(b"Transfer-Encoding: chunked")
    else:
        lines.append(b"Content-Length: %d" % request.content_length)
    head = b"\r\n".join(lines)
    # whoever smuggles a line end in here writes the headers, or the next request (RFC 9112 section 11.1)
    if len(head.translate(None, b"\r\n\0")) != len(head) - 2 * (len(lines) - 1):  # more than those between the lines
        raise ProxyError(INTERNAL, "A header for the upstream holds a character that is not allowed.")
    return head + b"\r\n\r\n"


async def _upload(
    connection: UpstreamConnection, reader: ResponseReader, request: UpstreamRequest, patience: _Patience
) -> None:
    """Send the body while the attempt waits for the head, which hears of a failure through `fail`."""
    body = request.body
    try:
        if isinstance(body, bytes):
            await _send_body(connection, _single(body), len(body), patience)
        else:
            await _send_body(connection, body, request.content_length, patience)
        connection.request_sent = True
    except asyncio.CancelledError:
        if reader.head is None:  # else the response is still wanted, without the rest of the upload
            connection.abort()
        raise
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the response, whatever it is
        connection.fail(error)


async def _send_body(
    connection: UpstreamConnection, body: AsyncIterable[bytes], length_bytes: int | None, patience: _Patience
) -> None:
    """Send all of `body` with back-pressure, chunked without a length (RFC 9112 section 7.1).

    Only a whole body gets its end mark: one that breaks off must not look complete to the upstream.
    """
    sent_bytes = 0
    async for piece in body:
        sent_bytes += len(piece)
        if length_bytes is not None and sent_bytes > length_bytes:
            raise ProxyError(BAD_REQUEST, "The request body is longer than its Content-Length.")
        for start in range(0, len(piece), PIECE_BYTES):
            part = piece[start : start + PIECE_BYTES]
            connection.write(b"%x\r\n%b\r\n" % (len(part), part) if length_bytes is None else part)
            patience.restart()
            await connection.drain()
        patience.stop()  # now the client is the slow one
    if length_bytes is None:
        connection.write(b"0\r\n\r\n")
    elif sent_bytes < length_bytes:
        raise ProxyError(BAD_REQUEST, "The request body is shorter than its Content-Length.")
    patience.restart()


async def _single(body: bytes) -> AsyncIterator[bytes]:
    yield body
