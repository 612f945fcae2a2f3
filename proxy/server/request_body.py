"""The body of a client's request, with a deadline that an honest upload on a slow line meets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.streams import EMPTY_PAYLOAD

from proxy.core import errors
from proxy.core.discreet import as_repr

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.http import RawRequestMessage

# a body must come in within `request_read_timeout`, and as much longer as it takes at this rate: a slow line may
# upload 25 MB, a client that sends a byte a second may not hold a connection for a day (Apache's mod_reqtimeout)
_MIN_BYTES_PER_S: Final = 65536


class RequestBody(msgspec.Struct, eq=False):
    """The body of the request with the head `_message`, as aiohttp hands it out, with a deadline."""

    _connection: BaseProtocol
    _message: RawRequestMessage
    _content: StreamReader
    _timeout_s: float
    received_bytes: int = 0
    _may_expect: bool = True  # leave to send it, which was not given yet
    _waited_s: float = 0.0

    def __repr__(self) -> str:
        return f"RequestBody({self.received_bytes} bytes)"  # the head holds credentials

    __rich_repr__ = as_repr

    @property
    def is_empty(self) -> bool:
        """No body is announced at all."""
        return self._content is EMPTY_PAYLOAD

    @property
    def content_length(self) -> int | None:
        """What the client said, in bytes; None for a chunked body."""
        length = "0" if self.is_empty else self._message.headers.get("Content-Length")
        return None if length is None else int(length)

    def take_whole(self) -> bytes | None:
        """All of the body where it is there; None where it is not: then `read` gives it in pieces."""
        content = self._content
        if content is EMPTY_PAYLOAD:
            return b""
        if not content.is_eof() or "Expect" in self._message.headers:
            return None
        pieces = content._buffer  # noqa: SLF001 - `read_nowait` makes three calls of each piece, for pauses long over
        data = b"".join(pieces)
        pieces.clear()
        self.received_bytes += len(data)
        return data

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises `ProxyError` 400 or 408, `ConnectionError` when the client left."""
        if self._content.at_eof():
            return b""
        if self._may_expect:
            self._may_expect = False
            self._let_come()
        try:
            data = self._content.read_nowait(-1) or await self._wait()
        except web.RequestPayloadError as error:
            raise errors.ProxyError(errors.BAD_REQUEST, "The request's body is not framed as HTTP says.") from error
        self.received_bytes += len(data)
        return data

    def _let_come(self) -> None:
        """Ask for the body, where the client waits for that (RFC 9110 section 10.1.1)."""
        message, transport = self._message, self._connection.transport
        if "Expect" in message.headers and message.version >= HttpVersion11 and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

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
