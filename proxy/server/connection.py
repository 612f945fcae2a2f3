"""A client's connection: aiohttp's parser, flow control and timers, and our own loop over the requests.

aiohttp's loop makes a task, a request, a writer and a response for each request, a tenth of all that one takes. Here
the task of the connection serves one after the other, as the parser hands them over. Errors are OpenAI's, and no byte
of a request reaches a log, which aiohttp's messages quote.

What this uses of aiohttp's `RequestHandler` that has no public name: `_parser`, `_messages`, `_ErrInfo`, `_waiter`,
`_upgraded`, `_close`, `_force_close`; of its bounds `_max_msg_queue_size`, `_msg_queue_resume_size`, `_buffer_paused`,
`_pause_reading_for_buffer`, `_resume_reading_if_drained`; of its keep-alive timer `_keepalive_timeout`,
`_keepalive_handle`, `_next_keepalive_close_time`, `_process_keepalive`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from proxy.core import errors
from proxy.phases.exchange import new_exchange_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import StreamReader
    from aiohttp.http import RawRequestMessage

    from proxy.server.http import Server

# after an early error an unread body is read on for so long, so that the client gets to read the answer
_LINGER_S: Final = 5.0
# who is refused, or does not speak HTTP, has so long to read why; no more at a time, as each holds a descriptor
_LAST_WORD_S: Final = 1.0
_MAX_LEAVING: Final = 64
# of a head that comes in pieces; the parser bounds its lines, 128 of 16 KiB
_MAX_HEAD_BYTES: Final = 64 * 1024
# When so many requests wait behind the one that is served, reading pauses, as each holds its head, of up to 2 MiB
_MAX_WAITING: Final = 2
# What the client's kernel does not take at once is too much already: then nothing more is read upstream, and uvloop
# tries each write where it is made. Of TLS a byte may wait, as its transports compare with "not less".
_MAX_UNSENT_BYTES: Final = 0
_MAX_UNSENT_BYTES_TLS: Final = 1


class Connection(RequestHandler):
    """A client's connection. `remote` is the address it comes from, `task` the one in which its requests are served."""

    __slots__ = ("_content", "_head_bytes", "_may_hold_back", "_server", "_watched", "date", "on_full", "remote",
                 "task")  # fmt: skip

    def __init__(self, server: Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self._max_msg_queue_size, self._msg_queue_resume_size = _MAX_WAITING, _MAX_WAITING - 1
        self._content = EMPTY_PAYLOAD  # the body that the parser feeds, or fed last
        self._head_bytes = 0  # of the next request, so far
        self._may_hold_back = False  # the parser, bytes that it was given
        self._watched: tuple[int, asyncio.Transport] | None = None  # by `Server.hangups`
        self.on_full: Callable[[], object] | None = (
            None  # told at once when the client must read before more is written
        )
        self.date = server.date
        self.remote = ""

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
        peer = transport.get_extra_info("peername")
        self.remote = str(peer[0]) if isinstance(peer, tuple) else ""  # a Unix socket's has no address
        self._watched = transport.get_extra_info("socket").fileno(), transport
        self._server.hangups.watch(*self._watched)

    def _refuse(self, transport: asyncio.Transport) -> None:
        """Answer 503 and let go."""
        error = errors.ProxyError(errors.TOO_MANY_CONNECTIONS, "Too many connections.", retry_after_s=1.0)
        refusal_id = new_exchange_id()
        transport.write(_last_answer(error, refusal_id, self.date()))
        self._leave(transport)
        self._server.log.warning("connection refused", id=refusal_id, limit=self._server.max_connections)

    def _leave(self, transport: asyncio.Transport) -> None:
        """End the connection behind a last answer: a close with bytes unread is a reset, which takes that along."""
        self._force_close = True  # what comes in now is dropped
        leaving = self._server.leaving
        if transport.can_write_eof() and len(leaving) < _MAX_LEAVING:
            leaving.add(self)
            transport.write_eof()
            self._loop.call_later(_LAST_WORD_S, transport.abort)
        else:
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection. The task is cancelled, and who reads the body elsewhere is told."""
        self._server.leaving.discard(self)
        if self._watched is not None:
            self._server.hangups.forget(*self._watched)
        self._content.set_exception(ConnectionResetError("the client has left"))
        self._content = EMPTY_PAYLOAD  # a body holds its connection
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came: requests wait for their turn, and their bodies for whoever reads them.

        What is not HTTP is answered in its turn, and ends the exchange whose body it breaks off, at once. Behind that,
        a head that is too large, and a request to upgrade, which is refused, nothing is read.
        """
        parser, waiting = self._parser, self._messages
        if parser is None or self._force_close or self._upgraded:
            return
        messages: Sequence[tuple[RawRequestMessage | _ErrInfo, StreamReader]]
        try:
            messages, self._upgraded, _ = parser.feed_data(data)
        except HttpProcessingError as error:
            if not self._content.is_eof():
                self._content.set_exception(web.RequestPayloadError("broken framing"))
            error.args, error.message = (), ""  # which quote all that was read
            messages = [(_ErrInfo(400, error.with_traceback(None), ""), EMPTY_PAYLOAD)]
            self._upgraded = True  # to nothing that anybody reads: each read would make another such error
        if not messages:
            if self._content is not EMPTY_PAYLOAD:
                return
            self._head_bytes += len(data)  # nothing but a head that has not come whole
            if self._head_bytes <= _MAX_HEAD_BYTES:
                return
            messages = [(_ErrInfo(431, BadHttpMessage("too large"), ""), EMPTY_PAYLOAD)]
            self._upgraded = True
        self._head_bytes = 0
        waiting.extend(messages)
        self._content = messages[-1][1]
        if len(waiting) >= self._max_msg_queue_size and not self._buffer_paused:
            self._pause_reading_for_buffer()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        """Called by the transport: it keeps what the client's kernel did not take."""
        super().pause_writing()
        if self.on_full is not None:
            self.on_full()

    def pause_reading(self) -> None:
        """Stop reading, as nobody takes what was read of a body; the parser stops too, at the next piece of any."""
        self._may_hold_back = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        """Read on after a pause; aiohttp asks at the end of each body, and parses once more what the parser held back.

        It holds nothing back where nothing was ever paused. Once told to stop it may do so later, when all flags are
        down again, and then nobody else gives it the rest.
        """
        if self._may_hold_back or self._buffer_paused:
            super().resume_reading(resume_parser)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """End the connection within `timeout` seconds, even one that is not read from.

        aiohttp leaves its transport to flush, for as long as the client likes.
        """
        transport = self.transport
        await super().shutdown(timeout)
        if transport is not None:
            transport.abort()

    async def start(self) -> None:
        """Serve the requests of this connection in turn, until one of the two sides ends it."""
        loop, messages, serve = self._loop, self._messages, self._server.serve
        self.task = cast("asyncio.Task[None]", asyncio.current_task())
        goes_on = True
        try:
            while goes_on and not (self._force_close or self._close):
                if not messages:
                    until_s = self._next_keepalive_close_time = loop.time() + self._keepalive_timeout
                    if self._keepalive_handle is None:
                        self._keepalive_handle = loop.call_at(until_s, self._process_keepalive)
                    self._waiter = loop.create_future()
                    await self._waiter
                    self._waiter = None
                message, content = messages.popleft()
                if self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                if isinstance(message, _ErrInfo):
                    error = errors.ProxyError(errors.BAD_REQUEST, "The request is not well-formed HTTP/1.1.")
                    self._fail(error, "malformed request", message.exc)
                    if self.transport is not None:
                        self._leave(self.transport)
                    return
                try:
                    goes_on = await serve(self, message, content)
                except ConnectionError:
                    return  # the client has left, or the exchange was cut on purpose: nothing may follow
                except Exception as fault:  # noqa: BLE001 - one request's fault must not become another's
                    error = errors.ProxyError(errors.INTERNAL, "Sluice failed on this request.")
                    self._fail(error, "handler fault", fault, is_head=message.method == "HEAD")
                    goes_on = False
                if not content.is_eof():
                    goes_on = await self._linger(content) and goes_on
                if content is self._content:
                    self._content = EMPTY_PAYLOAD
                del message, content  # credentials and a body that nobody read, perhaps, while nothing is asked
        finally:
            del self.task  # one that was cancelled keeps the frames, and those this connection
            if self.transport is not None and self not in self._server.leaving:
                self.transport.close()

    async def _linger(self, content: StreamReader) -> bool:
        """Read on for a while what nobody wants of a body; whether the client has sent all of it."""
        if self._force_close or self.transport is None or self.transport.is_closing():
            return False
        late = self._loop.call_later(_LINGER_S, content.set_exception, TimeoutError())
        try:
            await asyncio.sleep(0)  # an upload that read it was told to stop, and does so now
            while not content.is_eof():
                await content.readany()
        except (OSError, web.RequestPayloadError, errors.ProxyError):
            return False  # late, gone, or broken off before, which its exchange has told
        finally:
            late.cancel()
        return True

    def _fail(self, error: errors.ProxyError, event: str, fault: BaseException, *, is_head: bool = False) -> None:
        """Answer with `error` what did not become an exchange, or outlived it; the connection ends with that."""
        answer_id = new_exchange_id()
        if self.transport is not None:
            self.transport.write(_last_answer(error, answer_id, self.date(), is_head=is_head))
        log = self._server.log.info if error.kind.status < 500 else self._server.log.error
        log(event, id=answer_id, client=self.remote, fault=type(fault).__name__)


def _last_answer(error: errors.ProxyError, answer_id: str, date: bytes, *, is_head: bool = False) -> bytes:
    """An answer outside of any exchange, behind which the connection is closed."""
    body = errors.envelope(error)
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Server", b"sluice"),
        (b"x-request-id", answer_id.encode("ascii")),
        (b"x-sluice-id", answer_id.encode("ascii")),
        *errors.error_headers(error),
        (b"Date", date),
        (b"Connection", b"close"),
        (b"Content-Length", b"%d" % len(body)),
    ]
    status = HTTPStatus(error.kind.status)
    first = b"HTTP/1.1 %d %b" % (status, status.phrase.encode("ascii"))
    return b"\r\n".join([first, *map(b": ".join, headers), b"", b"" if is_head else body])
