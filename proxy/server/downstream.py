"""The client's side of an exchange on aiohttp: what the phases see of it, and nothing more."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from aiohttp import HttpVersion10

from proxy.core.discreet import as_repr

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader
    from aiohttp.http import RawRequestMessage

    from proxy.core.headers import RawHeaders
    from proxy.server.connection import Connection

# a client that is cut gets what was written before, for so long; then the connection is dropped with it
_CUT_LINGER_S: Final = 5.0


class Listener(Protocol):
    """What the connection was made to."""

    is_draining: bool  # an answer that begins now is the last of its connection


class Downstream(msgspec.Struct, eq=False):
    """Writes the answer, head and all: of a request that costs 60 µs, aiohttp's responses would take 30.

    `_extra` headers go with any answer to this request (CORS). Whether `_listener` drains is asked when the head goes
    out, which may be long after the request came: that ends keep-alive.
    """

    _connection: Connection
    _message: RawRequestMessage
    _content: StreamReader
    _extra: RawHeaders
    _listener: Listener
    started: bool = False
    keeps_alive: bool = False  # the connection goes on behind the answer
    sent_bytes: int = 0
    first_byte_s: float | None = None
    is_waiting: bool = False
    _pauses: int = 0
    _paused_s: float = 0.0
    _head: bytes = b""  # waits for the first bytes of the body: one packet, one system call
    _chunked: bool = False
    _is_bodiless: bool = False
    _ends_by_closing: bool = False
    _written_bytes: int = 0

    def __repr__(self) -> str:
        return f"Downstream({self.sent_bytes} bytes)"  # the request's head holds credentials

    __rich_repr__ = as_repr

    @property
    def backpressure(self) -> tuple[int, float]:
        """How often a write waited for the client, and for how many seconds in all."""
        return self._pauses, self._paused_s

    def start(self, status: int, headers: RawHeaders, content_length: int | None) -> None:
        """Make the head, which goes out with the first bytes behind it; without a length the body is chunked."""
        message = self._message
        is_current = message.version != HttpVersion10
        self.started = True
        self._is_bodiless = is_bodiless = status in _BODILESS or message.method == "HEAD"
        lines = [*map(b": ".join, headers + self._extra), b""]
        block = b"\r\n".join(lines)
        if not block.count(b"\n") == block.count(b"\r") == len(lines) - 1:
            raise ValueError("a header holds a line end")
        framing = b""
        if content_length is not None:
            if status not in _WITHOUT_LENGTH:
                framing = b"Content-Length: %d\r\n" % content_length
        elif not is_bodiless:
            if is_current:
                self._chunked = True
                framing = b"Transfer-Encoding: chunked\r\n"
            else:
                self._ends_by_closing = True
        ends = (
            message.should_close
            or message.upgrade  # which is refused; the parser stops behind it
            or self._ends_by_closing
            or self._listener.is_draining
            or (not self._content.is_eof() and self._is_out_of_step())
        )
        self.keeps_alive = not ends
        if ends == is_current:  # else it goes without saying (RFC 9112 section 9.3)
            framing += b"Connection: close\r\n" if ends else b"Connection: keep-alive\r\n"
        self._head = b"HTTP/1.%d %d %b\r\n%bServer: sluice\r\n%bDate: %b\r\n\r\n" % (
            is_current,
            status,
            _REASONS.get(status, b""),
            block,
            framing,
            self._connection.date(),
        )

    def _is_out_of_step(self) -> bool:
        """An unfinished body broke off, or the client waits for leave to send it: what comes next may be a request."""
        return self._content.exception() is not None or "Expect" in self._message.headers

    @property
    def is_direct(self) -> bool:
        """`write_now` is as good as `write` where what it says is heeded: the body is chunked."""
        return self._chunked

    async def write(self, data: bytes) -> None:
        """Write `data` in one piece, then wait while the client is slow. Raises `ConnectionError` when it has left."""
        goes_on = self.write_now(data)
        del data  # the transport has its own copy, and the client may be slow
        if not goes_on:
            await self._drain()

    def write_now(self, data: bytes) -> bool:
        """Write `data` in one piece; false if the client must read before more is written.

        Raises `ConnectionError` when it has left.
        """
        connection = self._connection
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        if self._is_bodiless:
            return True
        if self.first_byte_s is None:
            self.first_byte_s = time.perf_counter()
        self.sent_bytes += len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data = self._with_head(data)
        self._written_bytes += len(data)
        transport.write(data)
        return not connection.writing_paused

    def flow(self, on_full: Callable[[], object]) -> asyncio.Transport:
        """Where whole chunks may be given to, behind others, until `end_flow`; what flowed is told later, by `flowed`.

        `on_full` is called, from within that, when the client must read before more is written. Raises
        `ConnectionError` when the client has left; if it leaves later, what is written is lost.
        """
        connection = self._connection
        if connection.transport is None:
            raise ConnectionResetError("the client has left")
        connection.on_full = on_full
        return connection.transport

    def end_flow(self) -> None:
        """No more chunks flow."""
        self._connection.on_full = None

    def flowed(self, body_bytes: int, chunk_bytes: int) -> None:
        """Chunks flowed, of so many bytes without their framing and with it."""
        self.sent_bytes += body_bytes
        self._written_bytes += chunk_bytes

    def write_comment(self, data: bytes) -> None:
        """Write what is no part of the upstream's answer, between two events of a silent stream."""
        if self.started and not self._is_bodiless:
            self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def send_head(self) -> None:
        """Send the head by itself, because nothing is there yet to go out with it; nothing if it is out."""
        if self._head:
            self._send(b"")

    def _with_head(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + data

    def _send(self, data: bytes) -> None:
        """Hand framed bytes to the transport, behind the head where that is not out; nothing when the client left."""
        if self._head:
            data = self._with_head(data)
        transport = self._connection.transport
        if transport is not None and not transport.is_closing():
            self._written_bytes += len(data)
            transport.write(data)

    @property
    def is_full(self) -> bool:
        """The transport keeps bytes that the client's kernel did not take."""
        return self._connection.writing_paused

    async def drain(self) -> None:
        """Wait while it is full. Raises `ConnectionError` when the client has left."""
        if self.is_full:
            await self._drain()

    async def _drain(self) -> None:
        began_s = time.perf_counter()
        self._pauses += 1
        self.is_waiting = True
        try:
            await self._connection._drain_helper()  # noqa: SLF001 - aiohttp's writers wait for the same
        finally:
            self.is_waiting = False
            self._paused_s += time.perf_counter() - began_s

    async def finish(self) -> None:
        """End the body, and wait until the kernel has all of it: only then has the client a whole answer to read."""
        transport = self._connection.transport
        ending = b"0\r\n\r\n" if self._chunked else b""
        if self._head:
            ending = self._with_head(ending)
        if transport is None or transport.is_closing():
            if ending:
                raise ConnectionResetError("the client left before it had the whole answer")
            return
        if ending:
            self._written_bytes += len(ending)
            transport.write(ending)
        if transport.get_write_buffer_size():
            await self._drain()
            if transport.is_closing():
                raise ConnectionResetError("the client left before it had the whole answer")

    def cut(self) -> None:
        """End the connection without ending the body; what was written before still goes out, for a while."""
        self.keeps_alive = False
        self.send_head()
        transport = self._connection.transport
        if transport is not None and self._ends_by_closing:
            _reset(transport)  # a close would look like the body's end
        elif transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(_CUT_LINGER_S, transport.abort)

    def abort(self) -> None:
        """Drop the connection at once."""
        self.keeps_alive = False
        if self._connection.transport is not None:
            self._connection.transport.abort()

    def acknowledged_bytes(self) -> int | None:
        """A count that grows whenever the client's kernel acknowledges bytes; None when nothing is outstanding."""
        transport = self._connection.transport
        if transport is None:
            return None
        outstanding = transport.get_write_buffer_size() + _unacknowledged(transport)
        return None if outstanding == 0 else self._written_bytes - outstanding


_WITHOUT_LENGTH: Final = frozenset({*range(100, 200), 204})  # RFC 9110 section 8.6
_BODILESS: Final = _WITHOUT_LENGTH | {304}  # RFC 9112 section 6.3
_REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


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
