"""Ask the upstream, and judge the head of its answer.

Nothing went downstream yet, so every failure is still a status.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from proxy.core import errors
from proxy.core.discreet import as_repr
from proxy.core.headers import plain_type
from proxy.core.injection import REFUSING_STATUSES, refuses_stream_options
from proxy.phases.watchdog import Watchdog
from proxy.upstream.attempt import attempt

if TYPE_CHECKING:
    from proxy.phases.account import Account
    from proxy.phases.admit import Admission
    from proxy.phases.exchange import Exchange
    from proxy.phases.places import Ask, Place
    from proxy.phases.route import Sending
    from proxy.tasks import BackgroundTasks
    from proxy.upstream.stream import UpstreamStream

# 64 KiB: error answers are a few hundred bytes; a longer one is an HTML page whose end nobody needs
MAX_ERROR_BODY_BYTES: Final = 65536
_SSE_FIELD = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*(?:data|event|id|retry)?:")
_NOT_SSE = (b"application/json", b"text/html", b"application/problem+json")


AnswerKind = Literal["events", "opaque", "error"]
"""How the body of an answer is relayed.

events: SSE, whole events with error events and keep-alive comments. error: of an error status, whole, with the
upstream's credentials taken out. opaque: anything else, as it arrives.
"""


class Answer(msgspec.Struct, eq=False):
    """An upstream's answer whose head is in order; it holds its `place` there.

    `first` are body bytes already taken to judge the answer. `is_json`: the body is JSON, in no coding.
    `refuses_usage`: it is an error about the `stream_options` that Sluice added.
    """

    stream: UpstreamStream
    watchdog: Watchdog
    kind: AnswerKind
    first: bytes = b""
    is_json: bool = False
    refuses_usage: bool = False
    place: Place | None = None

    def __repr__(self) -> str:
        return f"<Answer {self.stream.head.status}, {self.kind}>"

    __rich_repr__ = as_repr

    def failed(self) -> None:
        """Note that the upstream told of an error in it."""
        if self.place is not None:
            self.place.failed()

    def broke(self, failure: errors.ProxyError) -> None:
        """Note why it did not reach its end; the upstream is to blame unless it was given too little time in all."""
        if self.place is not None and failure.kind.blame is errors.Blame.UPSTREAM and self.watchdog.fired != "total":
            self.place.failed()

    def close(self) -> None:
        """Give the upstream's connection back where the body is whole, abort it where it is not."""
        self.watchdog.stop()
        self.stream.close()
        if self.place is not None:
            self.place.leave()


class Course(msgspec.Struct, frozen=True, eq=False):
    """What stays the same over the tries of one exchange.

    `began_s` is when the first of them began, on the event loop's clock: the time for the whole exchange counts from
    there.
    """

    exchange: Exchange
    admission: Admission
    account: Account
    ask: Ask
    began_s: float


async def forward(
    course: Course, sending: Sending, place: Place, tasks: BackgroundTasks, write_stall_s: float | None
) -> Answer:
    """Send the request and wait for the head of the answer; the place and the account note that it is on its way.

    Raises `ProxyError` 502 or 504 for what the upstream did wrong, and whatever reading the client's body raises.
    """
    upstream = sending.route.upstream
    timeouts, pool = upstream.timeouts, upstream.pool
    loop = pool.loop
    most_s, deadline_s, left_s = timeouts.first_byte_s, None, None
    if timeouts.total_s is not None:
        deadline_s = course.began_s + timeouts.total_s
        left_s = max(0.0, deadline_s - loop.time())
        if left_s == 0:
            raise _out_of_time()
        most_s = left_s if most_s is None else min(most_s, left_s)
    try:
        connection = pool.take() or await pool.acquire(fresh=True)
        place.was_asked = course.account.is_sent = True
        stream = await attempt(pool, sending.request, first_byte_s=most_s, tasks=tasks, connection=connection)
    except errors.ProxyError as error:
        if error.kind is errors.UPSTREAM_TIMEOUT and left_s is not None and left_s == most_s:
            raise _out_of_time() from error
        raise
    watchdog = Watchdog(stream, course.exchange.downstream, timeouts.idle_s, deadline_s, write_stall_s, loop)
    try:
        head = stream.head
        body_type = plain_type(head.headers)
        kind = _kind(course.exchange, course.admission, head.status, body_type)
        first, refuses_usage = b"", False
        if kind is None:
            kind, first = "events", await _first_of_events(watchdog, body_type)
        elif sending.asks_usage and head.status in REFUSING_STATUSES:
            first = await read_error(stream, watchdog)
            refuses_usage = refuses_stream_options(head.status, first)
    except BaseException:
        watchdog.stop()
        stream.abort()
        raise
    return Answer(stream, watchdog, kind, first, body_type == b"application/json", refuses_usage)


def _out_of_time() -> errors.ProxyError:
    return errors.ProxyError(
        errors.OUT_OF_TIME, "The time for the whole exchange was over before the upstream answered."
    )


async def read_error(stream: UpstreamStream, watchdog: Watchdog) -> bytes:
    """The whole body of an error answer. Raises `ProxyError` if it is too long."""
    held = bytearray()
    while data := await watchdog.read():
        held += data
        if len(held) > MAX_ERROR_BODY_BYTES:
            raise errors.ProxyError(
                errors.UPSTREAM_PROTOCOL_ERROR,
                f"The upstream answered {stream.head.status} with a body over {MAX_ERROR_BODY_BYTES} bytes.",
            )
    return bytes(held)


def _kind(exchange: Exchange, admission: Admission, status: int, body_type: bytes | None) -> AnswerKind | None:
    """How the body is to be relayed; None where its first bytes have to show that it is events."""
    if status >= 400:
        return "error"
    if status >= 300 and status != 304:
        raise errors.ProxyError(errors.UPSTREAM_PROTOCOL_ERROR, f"The upstream answered with a redirect ({status}).")
    # events inside a coding nobody asked for cannot be told apart: they pass as they are
    if body_type is None or exchange.method == "HEAD" or status in (204, 304):
        return "opaque"
    if body_type == b"text/event-stream":
        return "events"
    if admission.streamed and exchange.endpoint.treatment == "metered":
        return None
    return "opaque"


async def _first_of_events(watchdog: Watchdog, body_type: bytes | None) -> bytes:
    """The first bytes of a body that does not say that it is events. Raises `ProxyError` where it is none."""
    first = b"" if body_type in _NOT_SSE else await _first_bytes(watchdog)
    if not _SSE_FIELD.match(first):
        # SDKs would show a 200 without events as an empty answer (protocol.md section 2.3)
        raise errors.ProxyError(
            errors.UPSTREAM_NOT_A_STREAM, "A stream was asked for, but the upstream's answer is not one."
        )
    return first


async def _first_bytes(watchdog: Watchdog) -> bytes:
    """Enough of the body to see whether events begin: servers that forget the content type are known."""
    first = b""
    while len(first) < 16:
        piece = await watchdog.read()
        if not piece:
            break
        first += piece
        if _SSE_FIELD.match(first):
            break
    return first
