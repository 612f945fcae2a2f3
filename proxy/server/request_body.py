"""The body of a client's request, with a deadline that an honest upload on a slow line meets."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import HttpVersion11, web

from proxy.core import errors

# a body must come in within `request_read_timeout`, and as much longer as it takes at this rate: a slow line may
# upload 25 MB, a client that sends a byte a second may not hold a connection for a day (Apache's mod_reqtimeout)
_MIN_BYTES_PER_S: Final = 65536


class RequestBody:
    """The request body as aiohttp hands it out, with a deadline."""

    __slots__ = ("_content", "_expects_continue", "_request", "_timeout_s", "_waited_s", "is_empty", "received_bytes")

    def __init__(self, request: web.BaseRequest, read_timeout_s: float) -> None:
        self.received_bytes = 0
        self.is_empty = not request.body_exists
        self._request = request
        self._content = request.content
        self._expects_continue = "Expect" in request.headers and request.version >= HttpVersion11
        self._timeout_s = read_timeout_s
        self._waited_s = 0.0

    @property
    def content_length(self) -> int | None:
        """What the client said, in bytes; None for a chunked body."""
        return 0 if self.is_empty else self._request.content_length

    def take_whole(self) -> bytes | None:
        """All of the body where it is there; None where it is not: then `read` gives it in pieces."""
        content = self._content
        if self._expects_continue or not content.is_eof() or content.exception() is not None:
            return b"" if self.is_empty else None
        data = content.read_nowait(-1)
        self.received_bytes += len(data)
        return data

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises `ProxyError` 400 or 408, `ConnectionError` when the client left."""
        if self.is_empty or self._content.at_eof():
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
