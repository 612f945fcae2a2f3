"""One HTTP/1.1 connection to an upstream, used by one exchange at a time.

A protocol on the loop's transport, plain or TLS, that parses in the callback in which bytes arrive. Three things hold:
what waits for the exchange is bounded (reading pauses), the end of a connection is always `transport.abort()`
(`close()` leaves TLS connections on uvloop open for 30 s and reads on, uvloop#471), and a connection that delivered
anything nobody asked for is never used again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, cast

from proxy.core.errors import INTERNAL, UPSTREAM_PROTOCOL_ERROR, UPSTREAM_STALE, ProxyError
from proxy.upstream.framing import ResponseHead, ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ResponseHead", "UpstreamConnection"]

READ_BUFFER_BYTES: Final = 32 * 1024  # at most this much arrives in one callback
MAX_WAITING_BYTES: Final = 32 * 1024  # of body that nobody took: above it, reading pauses
MAX_UNSENT_BYTES: Final = 64 * 1024  # in the transport: above it, an upload waits; TLS layers default to 512 KiB
MAX_ENCRYPTED_BYTES: Final = 32 * 1024  # in the TLS layer while reading is paused; the default is 256 KiB
_PEEK: Final = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)


class UpstreamConnection(asyncio.BufferedProtocol):
    """The connection.

    `read_buffer` may be shared by all connections of a loop: over TCP and TLS, asyncio and uvloop fill it and call
    `buffer_updated` with nothing in between. `on_closed` is called once, when the connection became unusable.
    """

    __slots__ = (
        "_drained",
        "_error",
        "_loop",
        "_on_closed",
        "_read_buffer",
        "_reader",
        "_reading_paused",
        "_socket",
        "_transport",
        "_waiter",
        "_writing_paused",
        "closed",
        "exchanges",
        "request_sent",
    )

    def __init__(self, read_buffer: memoryview, on_closed: Callable[[UpstreamConnection], None]) -> None:
        self.closed = False
        self.exchanges = 0  # begun on this connection
        self.request_sent = False  # all of the current exchange's request
        self._read_buffer = read_buffer
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._reader: ResponseReader | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False

    @property
    def transport(self) -> asyncio.Transport:
        """The transport in use; there is one from `connection_made` on."""
        return cast("asyncio.Transport", self._transport)

    @property
    def error(self) -> BaseException:
        """What ended the connection."""
        return self._error or ProxyError(INTERNAL, "the exchange with the upstream was aborted")

    # what an exchange does with it

    def begin(self, *, bodiless: bool = False) -> ResponseReader:
        """Expect a response, read by the reader returned; `bodiless` if it will answer HEAD or CONNECT."""
        self.exchanges += 1
        self.request_sent = False
        self._reader = ResponseReader(bodiless=bodiless)
        return self._reader

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes; the transport keeps what the kernel does not take."""
        if not self.closed:
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait while the transport keeps too much. Raises what ended the connection, if it ended."""
        while self._writing_paused and not self.closed:
            self._drained = self._loop.create_future()
            await self._drained
        if self.closed:
            raise self.error

    async def head(self, reader: ResponseReader) -> ResponseHead:
        """Wait for the final head. Raises what ended the connection before it: a `ProxyError`, or what `fail` got."""
        while (head := reader.head) is None:
            if self.closed:
                raise self.error
            await self.changed()
        return head

    async def changed(self) -> None:
        """Wait until bytes arrived or the connection ended. One waiter at a time."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read one upstream connection")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def resume_reading(self) -> None:
        """Read on, if reading was paused because too much waited."""
        if self._reading_paused and not self.closed:
            self._reading_paused = False
            self.transport.resume_reading()

    def finish(self) -> None:
        """The exchange is over: until the next `begin`, any byte ends the connection."""
        self._reader = None
        self.resume_reading()

    def fail(self, error: BaseException) -> None:
        """End the connection; whoever waits for it is told `error`."""
        if not self.closed:
            self._error = error
            self.abort()

    def abort(self) -> None:
        """End the connection now, whatever is unsent or unread. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._on_closed(self)
        _wake(self._waiter)
        _wake(self._drained)

    def quiet(self) -> bool:
        """Nothing came on this idle connection, not even something that the loop has not looked at yet.

        Else bytes sent behind one response would be read as the response to the next request. Asking the kernel costs
        a microsecond, and also finds most connections that the upstream just closed.
        """
        if self.closed or self._socket is None:
            return False
        try:
            self._socket.recv(1, _PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    # what connecting does with it

    def attach(self, sock: socket.socket) -> None:
        """Know the socket under the transport."""
        self._socket = sock

    def secured(self, transport: asyncio.Transport) -> None:
        """Go on over TLS: `transport` is what `loop.start_tls` returned."""
        self.connection_made(transport)
        cast("Any", transport).set_read_buffer_limits(high=MAX_ENCRYPTED_BYTES)  # TLS transports of both loops have it

    # what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop: connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        if self.closed:  # connecting was cancelled meanwhile
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the signature is asyncio's
        """Called by the transport: where the next read goes."""
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the transport: `nbytes` arrived in the buffer."""
        reader = self._reader
        if reader is None or reader.complete:
            self.abort()  # bytes that nobody asked for
            return
        try:
            reader.feed(self._read_buffer[:nbytes])
        except ProxyError as error:
            self.fail(error.with_traceback(None))  # its frames hold this connection, which holds the error
            return
        if reader.excess:
            self.abort()  # the response itself is whole
        elif len(reader.body) > MAX_WAITING_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        _wake(self._waiter)

    def eof_received(self) -> None:
        """Called by the transport: the peer will send no more. The connection is then closed in both directions."""
        self._ended(_ragged_end(self.transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport: closed, or broken by `exc`."""
        self._ended(exc)

    def pause_writing(self) -> None:
        """Called by the transport: it keeps more than MAX_UNSENT_BYTES."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Called by the transport: it sent enough to take more."""
        self._writing_paused = False
        _wake(self._drained)

    def _ended(self, cause: Exception | None) -> None:
        """The peer closed the connection, or it broke because of `cause`."""
        if self.closed:
            return
        reader = self._reader
        if reader is None:
            self.abort()
            return
        try:
            reader.end(reset=cause is not None)
        except ProxyError as error:
            kind = UPSTREAM_STALE if self.exchanges > 1 and not reader.started else UPSTREAM_PROTOCOL_ERROR
            told = ProxyError(kind, error.message)
            told.__cause__ = cause
            self.fail(told)
        else:
            self.abort()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _ragged_end(transport: asyncio.Transport) -> ssl.SSLError | None:
    """The error of a TLS connection that ended without close_notify.

    Anyone on the path can end it so; a body that only the end delimits is then incomplete (RFC 9112 section 9.8).
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return None
    try:
        tls.read(1)  # b"" once close_notify was received; else the TLS layer wants more
    except ssl.SSLZeroReturnError:
        return None
    except ssl.SSLError as error:
        return error
    return None
