"""One HTTP/1.1 connection to an upstream, used by one exchange at a time.

A protocol on the loop's TCP transport that decrypts and parses in the callback in which bytes arrive. Three things
hold: what waits for the exchange is bounded (reading pauses), the end of a connection is always `transport.abort()`
(`close()` waits for what is unsent), and a connection that delivered anything nobody asked for is never used again.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from typing import TYPE_CHECKING, Final, cast

from proxy.core.errors import INTERNAL, UPSTREAM_PROTOCOL_ERROR, UPSTREAM_STALE, ProxyError
from proxy.upstream.framing import ResponseReader
from proxy.upstream.tls import TlsSession

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.upstream.pool import ReadBuffer
    from proxy.upstream.stream import Tap

READ_BUFFER_BYTES: Final = 16 * 1024  # at most this much arrives in one callback
MAX_WAITING_BYTES: Final = 16 * 1024  # of body that nobody took: above it, reading pauses
MAX_UNSENT_BYTES: Final = 64 * 1024  # in the transport: above it, an upload waits; uvloop's and asyncio's default


class UpstreamConnection(asyncio.BufferedProtocol):
    """The connection.

    `read_buffer` may be shared by all connections of a loop: asyncio and uvloop ask `get_buffer` for it, fill it and
    call `buffer_updated` with nothing in between. `on_closed` is called once, when the connection became unusable.
    While there is a `sink`, it is called with body bytes as they arrive, and with b"" when some wait, or the body or
    the connection ended. Before that the `Tap` given to `tap_into` has each read that begins with a chunk.
    """

    __slots__ = ("_drained", "_error", "_handshaking", "_loop", "_on_closed", "_open_tap", "_poll", "_read_buffer",
                 "_reader", "_reading_paused", "_tap", "_tls", "_transport", "_waiter", "_writing_paused", "closed",
                 "exchanges", "get_buffer", "opened_s", "request_sent", "sink")  # fmt: skip

    def __init__(self, read_buffer: ReadBuffer, on_closed: Callable[[UpstreamConnection], None]) -> None:
        self.exchanges = 0  # begun on this connection
        self.closed = False
        self.request_sent = False  # all of the current exchange's request
        self._read_buffer = read_buffer.view
        self.get_buffer = read_buffer.get  # type: ignore[assignment, method-assign]  # faster than a method of ours
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.opened_s = self._loop.time()
        self._transport: asyncio.Transport | None = None
        self._tls: TlsSession | None = None
        self._poll: select.poll | None = None
        self._reader: ResponseReader | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.sink: Callable[[bytes], None] | None = None
        self._tap: Tap | None = None
        self._open_tap: Tap | None = None  # which is given reads without asking anything else
        self._drained: asyncio.Future[None] | None = None
        self._handshaking = self._reading_paused = self._writing_paused = False

    @property
    def transport(self) -> asyncio.Transport:
        """The TCP transport; there is one from `connection_made` on."""
        return cast("asyncio.Transport", self._transport)

    @property
    def error(self) -> BaseException:
        """What ended the connection."""
        return self._error or ProxyError(INTERNAL, "The exchange with the upstream was aborted.")

    # what an exchange does with it

    def begin(self, *, bodiless: bool = False) -> ResponseReader:
        """Expect a response, read by the reader returned; `bodiless` if it will answer HEAD or CONNECT."""
        self.exchanges += 1
        self.request_sent = False
        self._reader = ResponseReader(bodiless=bodiless)
        return self._reader

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes; the transport keeps what the kernel does not take."""
        if self.closed:
            return
        if self._tls is not None:
            try:
                data = self._tls.encrypt(data)
            except ssl.SSLError as error:
                self._ended(error)
                return
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait while the transport keeps too much. Raises what ended the connection, if it ended."""
        while self._writing_paused and not self.closed:
            self._drained = self._loop.create_future()
            await self._drained
        if self.closed:
            raise self.error

    def changed(self) -> asyncio.Future[None]:
        """Done when bytes arrived or the connection ended. One waiter at a time.

        Raises what has ended the connection already: a `ProxyError`, or what `fail` got.
        """
        if self.closed:
            raise self.error
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("two tasks read one upstream connection")
        self._waiter = self._loop.create_future()
        return self._waiter

    def tap_into(self, tap: Tap | None) -> None:
        """From now on `tap` is given what it is for, until this is called with None."""
        self._tap = tap
        self._turn_tap()

    def _turn_tap(self) -> None:
        """Open it, or close it, by what the next read begins with, if that is known."""
        reader = self._reader
        is_open = self._tls is None and reader is not None and reader.between_chunks
        self._open_tap = self._tap if is_open else None

    def resume_reading(self) -> None:
        """Read on, if reading was paused because too much waited."""
        if self._reading_paused and not self.closed:
            self._reading_paused = False
            if self._tls is not None:
                self._decrypt(self._tls)
            if not self._reading_paused and not self.closed:
                self.transport.resume_reading()

    def finish(self) -> None:
        """The response was whole and is done with: until the next `begin`, any byte ends the connection."""
        self._reader = None

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
        if self.sink is not None:
            self.sink(b"")
        _wake(self._waiter)
        _wake(self._drained)

    def quiet(self) -> bool:
        """Nothing came on this idle connection, not even something that the loop has not looked at yet.

        Else bytes sent behind one response would be read as the response to the next request. Asking the kernel costs
        half a microsecond, and also finds most connections that the upstream just closed.
        """
        return not self.closed and self._poll is not None and not self._poll.poll(0)

    # what connecting does with it

    def attach(self, sock: socket.socket) -> None:
        """Know the socket under the transport."""
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    async def secure(self, context: ssl.SSLContext, server_hostname: str) -> None:
        """Go on over TLS: shake hands. Raises OSError, ssl.SSLError among them."""
        self._tls = TlsSession(context, server_hostname)
        self._handshaking = True
        while not self._tls.handshake():
            if self.closed:
                raise ConnectionResetError("the connection ended within the TLS handshake")
            self.transport.write(self._tls.to_send())
            await self.changed()
        self._handshaking = False
        self.transport.write(self._tls.to_send())
        self._decrypt(self._tls)  # what came along with the end of the handshake

    # what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop: connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        if self.closed:  # connecting was cancelled meanwhile
            self._transport.abort()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the transport: `nbytes` arrived in the buffer."""
        tap = self._open_tap
        if tap is not None:
            if rest := tap.passed(self._read_buffer[:nbytes].tobytes()):
                self._parse(rest)
            return
        if self._tls is None:
            self._feed(self._read_buffer[:nbytes])
            return
        self._tls.received(self._read_buffer[:nbytes])
        if self._handshaking:
            _wake(self._waiter)
        else:
            self._decrypt(self._tls)

    def eof_received(self) -> None:
        """Called by the transport: the peer will send no more. The connection is then closed in both directions."""
        # Anyone on the path can end TLS so: a body that only the end delimits is incomplete (RFC 9112 section 9.8).
        self._ended(None if self._tls is None else ssl.SSLEOFError("the connection ended without close_notify"))

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

    def _decrypt(self, tls: TlsSession) -> None:
        """Take what has arrived, unless reading is paused: the rest is then decrypted as it resumes."""
        try:
            while not self._reading_paused and (size := tls.decrypt_into(self._read_buffer)):
                self._feed(self._read_buffer[:size])
                if self.closed:
                    return
        except ssl.SSLError as error:
            self._ended(error)
            return
        if tls.peer_closed:
            self._ended(None)
        elif answer := tls.to_send():
            self.transport.write(answer)

    def _feed(self, data: memoryview | bytes) -> None:
        reader = self._reader
        if self._tap is None or reader is None or not reader.between_chunks:
            self._parse(data)
        elif rest := self._tap.passed(bytes(data)):
            self._parse(rest)

    def _parse(self, data: memoryview | bytes) -> None:
        reader = self._reader
        if self.sink is not None and reader is not None and (body := reader.whole_chunk(data)):
            self.sink(body)
            return
        if reader is None or reader.complete:
            self.abort()  # bytes that nobody asked for
            return
        try:
            reader.feed(data)
        except ProxyError as error:
            self.fail(error.with_traceback(None))  # its frames hold this connection, which holds the error
            return
        if reader.excess:
            self.abort()  # the response itself is whole
        elif len(reader.body) > MAX_WAITING_BYTES and not reader.complete:  # if complete, what follows must be seen
            self._reading_paused = True
            self.transport.pause_reading()
        if self.sink is None:
            _wake(self._waiter)
        elif self._reading_paused or reader.complete:
            self.sink(b"")  # of a body that ended or is too much, all waits for a reader
        elif body := reader.take():  # framing alone is no sign of life
            self.sink(body)
        if self._tap is not None:
            self._turn_tap()

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
