"""aiohttp's low-level server with connections of ours, which are capped.

Our own route table costs less than aiohttp's router, and leaves no second 404 to replace.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage, StreamWriter

from proxy.server.connection import Connection
from proxy.server.hangups import Hangups

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import structlog

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    # serves a request, whose head and body these are; whether the connection goes on
    Serve = Callable[[Connection, RawRequestMessage, StreamReader], Awaitable[bool]]

# idle time of a kept-alive connection, and the time a client has for a request head: nginx's value
_KEEPALIVE_S: Final = 75.0
_HEAD_LINE_BYTES: Final = 16384
# a body is taken from the socket in pieces of at most twice this, and held no further
_READ_BYTES: Final = 65536


def server(serve: Serve, *, max_connections: int, log: structlog.typing.FilteringBoundLogger) -> Server:
    """A server with every limit set. Must be called inside the event loop."""
    return Server(
        serve,
        max_connections=max_connections,
        log=log,
        handler_cancellation=True,  # a client that leaves cancels the handler, in every phase
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=_KEEPALIVE_S,
        max_line_size=_HEAD_LINE_BYTES,
        max_field_size=_HEAD_LINE_BYTES,
        read_bufsize=_READ_BYTES,
    )


def with_aiohttp(handler: Handler) -> Serve:
    """Serves as `handler` says in aiohttp's requests and responses: for what is asked rarely."""

    async def serve(connection: Connection, message: RawRequestMessage, content: StreamReader) -> bool:
        loop = asyncio.get_running_loop()
        request = web.BaseRequest(message, content, connection, StreamWriter(connection, loop), connection.task, loop)
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            response = refusal
        await response.prepare(request)
        await response.write_eof()
        return bool(response.keep_alive) and not message.upgrade  # the parser stops behind that

    return serve


class Server(web.Server):
    """An aiohttp server whose connections are ours."""

    def __init__(
        self,
        serve: Serve,
        *,
        max_connections: int,
        log: structlog.typing.FilteringBoundLogger,
        **kwargs: Any,
    ) -> None:
        super().__init__(cast("Handler", serve), **kwargs)  # which it only keeps: our connections ask `serve`
        self.serve = serve
        self.max_connections = max_connections
        self.log = log
        self.leaving: set[Connection] = set()
        self._connection_kwargs = kwargs | {"loop": self._loop}
        self._connection_kwargs.pop("handler_cancellation", None)
        self.hangups = Hangups()
        self._date = 0, b""  # as of a second since 1970

    def date(self) -> bytes:
        """The time of day as the header `Date` has it (RFC 9110 section 5.6.7), worked out once a second."""
        now_s = time.time_ns() // 1_000_000_000
        if now_s != self._date[0]:
            self._date = now_s, formatdate(now_s, usegmt=True).encode("ascii")
        return self._date[1]

    @property
    def open_connections(self) -> int:
        """How many connections are open; aiohttp's own `connections` makes a list of them."""
        return len(self._connections)

    def may_accept(self, handshaking: int) -> bool:
        """Whether there is room for one more, beside those that are `handshaking`."""
        return self.open_connections + handshaking < self.max_connections

    def __call__(self) -> Connection:
        """One more connection."""
        return Connection(self, **self._connection_kwargs)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """End all connections, each within `timeout` seconds."""
        await super().shutdown(timeout)
        self.hangups.close()
