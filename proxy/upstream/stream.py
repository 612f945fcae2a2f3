"""A response on its way: its head is here, and its body is read, or flows, as it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from proxy.core.discreet import Discreet
from proxy.core.errors import INTERNAL, ProxyError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from proxy.upstream.connection import UpstreamConnection
    from proxy.upstream.framing import ResponseHead, ResponseReader
    from proxy.upstream.pool import UpstreamPool


class Tap(Protocol):
    """What reads go by before anything else."""

    def passed(self, data: bytes) -> bytes:
        """Take the whole chunks (RFC 9112 section 7.1) that `data` begins with; return what is left behind them."""


class UpstreamStream(Discreet):
    """A response whose head is here and whose body is on its way. Whoever holds it calls `close` in a `finally`."""

    _pool: UpstreamPool
    _connection: UpstreamConnection | None
    _reader: ResponseReader
    head: ResponseHead
    _upload: asyncio.Task[None] | None
    reused: bool  # came over a kept-alive connection
    _error: ProxyError | None = None

    @property
    def received_bytes(self) -> int:
        """Body bytes so far, framing excluded."""
        return self._reader.received_bytes

    @property
    def complete(self) -> bool:
        """The framing said that the body is whole (parts of it may still wait to be read)."""
        return self._reader.complete

    @property
    def close_delimited(self) -> bool:
        """Only the end of the connection ends the body, so a clean end may be a truncation."""
        return self._reader.close_delimited

    def read_nowait(self) -> bytes:
        """All body bytes that wait, b"" if none do."""
        data = self._reader.take()
        if data and self._connection is not None:
            self._connection.resume_reading()
        return data

    async def read(self) -> bytes:
        """Wait for body bytes and return all there are; b"" at the clean end.

        Raises, after all bytes before it were returned: what `fail` was given; a `ProxyError` of kind
        UPSTREAM_PROTOCOL_ERROR for a body that broke off or was framed wrongly; what an upload's body iterator raised.
        """
        while True:
            if data := self.read_nowait():
                return data
            if self._error is not None:
                raise self._error
            if self._reader.complete:
                return b""
            if self._connection is None:
                raise ProxyError(INTERNAL, "The exchange with the upstream was aborted.")
            await self._connection.changed()

    @property
    def is_open(self) -> bool:
        """More of the body may arrive."""
        connection = self._connection
        return connection is not None and not connection.closed and self._error is None and not self._reader.complete

    def flow_into(self, sink: Callable[[bytes], None] | None) -> None:
        """Hand body bytes to `sink` in the very callback in which they arrive, until this is called with None.

        It is given b"" when it is time to `read`. What it does not take it gives to `unread`, and ends the flow.
        """
        if self._connection is not None:
            self._connection.sink = sink
            self._connection.tap_into(None)

    def tap(self, tap: Tap | None) -> None:
        """While the body flows, give each read that begins with a chunk to `tap`, before the sink.

        It takes as many chunks as it likes, and tells by `passed_chunks`, later, how much was in them.
        """
        if self._connection is not None:
            self._connection.tap_into(tap)

    def passed_chunks(self, body_bytes: int) -> None:
        """So much body went by the tap."""
        self._reader.passed_chunks(body_bytes)

    def unread(self, data: bytes) -> None:
        """Put back what a sink was just given: the next read returns it."""
        self._reader.body += data

    def fail(self, error: ProxyError) -> None:
        """End the exchange: after the bytes that wait, this and every later `read` raises `error`."""
        self._error = self._error or error
        if self._connection is not None:
            self._connection.abort()

    def abort(self) -> None:
        """End the connection now. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            if self._upload is not None:
                self._upload.cancel()

    def close(self) -> None:
        """The exchange is over: keep the connection if it is clean, else abort it. Idempotent."""
        connection = self._connection
        if connection is None:
            return
        if self._reader.reusable and connection.request_sent:
            self._connection = None
            self._pool.release(connection, self._reader.keep_alive_s)
        else:
            self.abort()
