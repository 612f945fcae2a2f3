"""aiohttp's server, made ours: errors are OpenAI's, no request byte reaches a log, connections are capped.

It is aiohttp's low-level server: our own route table costs less than its router, and leaves no second 404 to replace.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from proxy.core import errors
from proxy.phases.exchange import new_exchange_id
from proxy.server.hangups import Hangups

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    import structlog

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# idle time of a kept-alive connection, and the time a client has for a request head: nginx's value
_KEEPALIVE_S: Final = 75.0
# after an early error an unread body is read on for so long, so that the client gets to read the answer
_LINGER_S: Final = 5.0
# a client that is refused has so long to read why; no more than this many at a time, as each holds a descriptor
_REFUSED_LINGER_S: Final = 1.0
_MAX_REFUSED: Final = 64
_HEAD_LINE_BYTES: Final = 16384
# What the client's kernel does not take at once is too much already: then nothing more is read upstream, and uvloop
# tries each write where it is made. Of TLS a byte may wait, as its transports compare with "not less".
_MAX_UNSENT_BYTES: Final = 0
_MAX_UNSENT_BYTES_TLS: Final = 1
# a body is taken from the socket in pieces of at most twice this, and held no further
_READ_BYTES: Final = 65536


def server(handler: Handler, *, max_connections: int, log: structlog.typing.FilteringBoundLogger) -> Server:
    """A server for `handler`, with every limit set. Must be called inside the event loop."""
    return Server(
        handler,
        max_connections=max_connections,
        log=log,
        handler_cancellation=True,  # a client that leaves cancels the handler, in every phase
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=_KEEPALIVE_S,
        lingering_time=_LINGER_S,
        max_line_size=_HEAD_LINE_BYTES,
        max_field_size=_HEAD_LINE_BYTES,
        read_bufsize=_READ_BYTES,
    )


class Server(web.Server):
    """An aiohttp server whose connections are ours."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_connections: int,
        log: structlog.typing.FilteringBoundLogger,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, **kwargs)
        self.max_connections = max_connections
        self.log = log
        self.refused: set[Connection] = set()
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


class Connection(RequestHandler):
    """A client's connection."""

    __slots__ = ("_server", "_watched", "date")

    def __init__(self, server: Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self.date = server.date
        self._watched: tuple[int, asyncio.Transport] | None = None  # by `Server.hangups`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it with an answer when there are too many."""
        if self._server.open_connections < self._server.max_connections:
            super().connection_made(transport)
            self._adopt(cast("asyncio.Transport", transport))
            return
        self._refuse(cast("asyncio.Transport", transport))

    def _adopt(self, transport: asyncio.Transport) -> None:
        """What aiohttp leaves undone on a new connection."""
        is_tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=_MAX_UNSENT_BYTES_TLS if is_tls else _MAX_UNSENT_BYTES)
        self._watched = transport.get_extra_info("socket").fileno(), transport
        self._server.hangups.watch(*self._watched)

    def _refuse(self, transport: asyncio.Transport) -> None:
        """Answer 503 and let go; not at once, as a close with bytes unread is a reset, which takes the answer along."""
        self._force_close = True  # what comes in now is dropped
        error = errors.ProxyError(errors.TOO_MANY_CONNECTIONS, "Too many connections.", retry_after_s=1.0)
        body, refusal_id = errors.envelope(error), new_exchange_id().encode("ascii")
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nServer: sluice\r\n"
            b"x-request-id: %b\r\nx-sluice-id: %b\r\nretry-after: 1\r\nretry-after-ms: 1000\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (refusal_id, refusal_id, len(body), body)
        )
        refused = self._server.refused
        if transport.can_write_eof() and len(refused) < _MAX_REFUSED:
            refused.add(self)
            transport.write_eof()
            self._loop.call_later(_REFUSED_LINGER_S, transport.abort)
        else:
            transport.close()
        self._server.log.warning("connection refused", id=refusal_id.decode(), limit=self._server.max_connections)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._server.refused.discard(self)
        if self._watched is not None:
            self._server.hangups.forget(*self._watched)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a body that breaks its framing ends the exchange that reads it, at once.

        aiohttp queues such an error as the next request, while the reader of the body waits for ever.
        """
        super().data_received(data)
        request = self._current_request
        if request is not None and self._messages and not request.content.is_eof():
            broken = self._messages[-1][0]
            if not hasattr(broken, "method"):
                request.content.set_exception(web.RequestPayloadError("broken framing"))

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        """Read on after a pause; aiohttp asks at the end of each body, and parses nothing once more where none was.

        Its parser holds bytes back only while one of the two flags is set.
        """
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """End the connection within `timeout` seconds, even one that is not read from.

        aiohttp leaves its transport to flush, and uvloop does not let go of a loop with an unflushed transport.
        """
        transport = self.transport
        await super().shutdown(timeout)
        if transport is not None:
            transport.abort()

    def log_exception(self, *_args: Any, **kw: Any) -> None:
        """Log what happened without the request's bytes, which aiohttp's messages quote."""
        fault = kw.get("exc_info")
        if isinstance(fault, (web.RequestPayloadError, errors.ProxyError)):
            return  # a body that broke off or was late: its exchange has told of it, and aiohttp meets it once more
        self._server.log.warning("connection fault", fault=type(fault).__name__)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; its text quotes the request
    ) -> web.StreamResponse:
        """The answer to what aiohttp itself refuses: broken heads, or a fault in the handler."""
        if isinstance(exc, ConnectionError):
            raise exc  # the exchange was cut on purpose; nothing may follow
        if request.writer.output_size > 0:
            raise ConnectionResetError("the head of an answer is out already")
        if status < 500:
            error = errors.ProxyError(errors.BAD_REQUEST, "The request is not well-formed HTTP/1.1.")
        else:
            error = errors.ProxyError(errors.INTERNAL, "Sluice failed on this request.")
        log = self._server.log.info if status < 500 else self._server.log.error
        answer_id = new_exchange_id()
        event = "malformed request" if status < 500 else "handler fault"
        log(event, id=answer_id, client=request.remote, fault=type(exc).__name__)
        response = web.Response(status=error.kind.status, body=errors.envelope(error), content_type="application/json")
        response.headers.update({"Server": "sluice", "x-request-id": answer_id, "x-sluice-id": answer_id})
        response.force_close()
        return response
