"""The client's side of an exchange on aiohttp: what the phases see of it, and nothing more."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING, Final, cast

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from proxy.core import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.http_writer import StreamWriter

    from proxy.core.headers import RawHeaders

# a client that is cut gets what was written before, for so long; then the connection is dropped with it
_CUT_LINGER_S: Final = 5.0
# a body must come in within `request_read_timeout`, and as much longer as it takes at this rate: a slow line may
# upload 25 MB, a client that sends a byte a second may not hold a connection for a day (Apache's mod_reqtimeout)
_MIN_BYTES_PER_S: Final = 65536


class RequestBody:
    """The request body as aiohttp hands it out, with a deadline."""

    def __init__(self, request: web.BaseRequest, read_timeout_s: float) -> None:
        self.received_bytes = 0
        self.is_empty = not request.body_exists
        self.content_length = 0 if self.is_empty else request.content_length
        self._request = request
        self._content = request.content
        self._expects_continue = "Expect" in request.headers and request.version >= HttpVersion11
        self._timeout_s = read_timeout_s
        self._waited_s = 0.0

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises `ProxyError` 400 or 408, `ConnectionError` when the client left."""
        if self.is_empty:
            return b""
        if self._expects_continue:
            self._expects_continue = False
            if self._request.transport is not None:
                self._request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            data = self._content.read_nowait(-1) or await self._wait()
        except web.RequestPayloadError as error:
            raise errors.ProxyError(errors.BAD_REQUEST, "The request's body is not framed as HTTP says.") from error
        self.received_bytes += len(data)
        return data

    async def _wait(self) -> bytes:
        """Wait for the client. Only this counts: while a slow upstream holds an upload up, its client is not late."""
        loop = asyncio.get_running_loop()
        late = errors.ProxyError(errors.REQUEST_TIMEOUT, "The request's body did not arrive in time.")
        began_s = loop.time()
        allowed_s = self._timeout_s + self.received_bytes / _MIN_BYTES_PER_S
        timer = loop.call_at(began_s + allowed_s - self._waited_s, self._content.set_exception, late)
        try:
            return await self._content.readany()
        finally:
            timer.cancel()
            self._waited_s += loop.time() - began_s


class Downstream:
    """Writes the answer. `extra` headers go with any answer to this request (CORS).

    `is_last` is asked when the head goes out, which may be long after the request came: it ends keep-alive.
    """

    def __init__(self, request: web.BaseRequest, extra: RawHeaders, *, is_last: Callable[[], bool]) -> None:
        self.response: web.StreamResponse | None = None
        self.sent_bytes = 0
        self.first_byte_s: float | None = None
        self.is_waiting = False
        self.is_cut = False
        self._pauses = 0
        self._paused_s = 0.0
        self._request = request
        self._extra = extra
        self._is_last = is_last
        self._writer: StreamWriter | None = None
        self._is_head = request.method == "HEAD"
        self._ends_by_closing = False

    @property
    def started(self) -> bool:
        """The head went out."""
        return self.response is not None

    @property
    def backpressure(self) -> tuple[int, float]:
        """How often a write waited for the client, and for how many seconds in all."""
        return self._pauses, self._paused_s

    async def start(self, status: int, headers: RawHeaders, content_length: int | None) -> None:
        """Make the head, which goes out with the first bytes behind it; without a length the body is chunked."""
        self.response = _Response(status=status, headers=_decoded([*headers, *self._extra]))
        self.response.headers["Server"] = "sluice"
        if self._is_last() or self._is_out_of_step():
            self.response.force_close()
        if content_length is not None:
            self.response.content_length = content_length
        elif self._request.version < HttpVersion11:
            self._ends_by_closing = True
            self.response.force_close()  # aiohttp would keep alive what only a close can end
        self._writer = cast("StreamWriter", await self.response.prepare(self._request))

    def _is_out_of_step(self) -> bool:
        """The body broke off, or the client waits for leave to send it: what comes next may be that, or a request."""
        content = self._request.content
        return content.exception() is not None or ("Expect" in self._request.headers and not content.is_eof())

    async def write(self, data: bytes) -> None:
        """Write `data` in one piece, then wait while the client is slow. Raises `ConnectionError` when it has left."""
        writer = self._writer
        if writer is None or self._is_head:
            return
        if self.first_byte_s is None:
            self.first_byte_s = time.perf_counter()
        self.sent_bytes += len(data)
        await writer.write(data, drain=False)
        del data  # the transport has its own copy, and the client may be slow
        if self._request.protocol.writing_paused:
            await self._drain(writer)

    def send_head(self) -> None:
        """Send the head by itself, because nothing is there yet to go out with it; nothing if it is out."""
        if self._writer is not None:
            self._writer.send_headers()

    def write_now(self, data: bytes) -> None:
        """Write a chunk without waiting, between two events of a silent stream."""
        transport = self._request.transport
        if transport is not None and not transport.is_closing() and self._writer is not None:
            self._writer.send_headers()
            self._writer.output_size += len(data)
            framed = b"%x\r\n%b\r\n" % (len(data), data) if self._writer.chunked else data
            transport.write(framed)

    async def _drain(self, writer: StreamWriter) -> None:
        began_s = time.perf_counter()
        self._pauses += 1
        self.is_waiting = True
        try:
            await writer.drain()
        finally:
            self.is_waiting = False
            self._paused_s += time.perf_counter() - began_s

    async def finish(self) -> None:
        """End the body, and wait until the kernel has all of it: only then has the client a whole answer to read."""
        writer, transport = self._writer, self._request.transport
        if self.response is None or writer is None:
            return
        await self.response.write_eof()
        if transport is not None and transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=0)
            await self._drain(writer)
            if transport.is_closing():
                raise ConnectionResetError("the client left before it had the whole answer")
            transport.set_write_buffer_limits()

    def cut(self) -> None:
        """End the connection without ending the body; what was written before still goes out, for a while."""
        self.is_cut = True
        self.send_head()
        transport = self._request.transport
        if transport is not None and self._ends_by_closing:
            _reset(transport)  # a close would look like the body's end
        elif transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(_CUT_LINGER_S, transport.abort)

    def abort(self) -> None:
        """Drop the connection at once."""
        self.is_cut = True
        if self._request.transport is not None:
            self._request.transport.abort()

    def acknowledged_bytes(self) -> int | None:
        """A count that grows whenever the client's kernel acknowledges bytes; None when nothing is outstanding."""
        transport = self._request.transport
        if transport is None or self._writer is None:
            return None
        outstanding = transport.get_write_buffer_size() + _unacknowledged(transport)
        return None if outstanding == 0 else self._writer.output_size - outstanding


class _Response(web.StreamResponse):
    """One whose head waits for the first bytes of its body: two packets and two system calls are one too many."""

    _send_headers_immediately = False


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes in the socket's send queue that the peer has not acknowledged (SIOCOUTQ, which equals TIOCOUTQ)."""
    sock = transport.get_extra_info("socket")
    try:
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):
        return 0  # not Linux, or just closed: then only our own buffer tells of progress
    return int(struct.unpack("i", queued)[0])


def _reset(transport: asyncio.Transport) -> None:
    """End the connection with a RST, which no client takes for an end of file."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _decoded(headers: RawHeaders) -> CIMultiDict[str]:
    """Headers as aiohttp takes them. It writes UTF-8; what is not UTF-8 cannot cross unchanged."""
    return CIMultiDict((name.decode("ascii"), value.decode("utf-8", "replace")) for name, value in headers)
