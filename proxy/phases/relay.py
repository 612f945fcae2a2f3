"""Move the body: what the upstream sends is what the client receives, byte for byte, as it arrives.

This is a plain loop of read, write and drain: back-pressure needs no queue, because while `write` waits for the client
nothing takes bytes from the upstream, whose connection then stops reading. Usual events need not come this way:
`relay_at_transport.py` lets them flow past, where it can, and leaves the loop what must be judged. Once the head is out
a failure can no longer be a status: it becomes an error event, or, where events cannot be told apart, a connection that
ends without its end.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core import errors
from proxy.core.discreet import Discreet
from proxy.core.ending import EndingWatch, parted_at_hidden_error
from proxy.core.headers import header, to_downstream
from proxy.core.sse import KEEPALIVE_COMMENT, EventScanner
from proxy.phases.forward import read_error
from proxy.phases.relay_at_transport import EventFlow, may_flow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.core.gaps import Gaps
    from proxy.core.headers import RawHeaders
    from proxy.phases.allowance import Allowance
    from proxy.phases.exchange import Exchange
    from proxy.phases.forward import Answer
    from proxy.phases.observe import Observer
    from proxy.phases.upstreams import Upstream

# SDKs wait for the end of the body after `[DONE]`; an upstream that holds it open is left behind after this
_AFTER_DONE_S: Final = 1.0
# clients leave at the finish reason, and the usage comes behind it (protocol.md section 5.1)
_AFTER_FINISH_S: Final = 2.0
_TRUNCATED = "The upstream ended the stream before the answer was finished."
_ERROR_FIELD = "The upstream reported an error in a form that clients do not see."


class Relayed(msgspec.Struct, frozen=True):
    """What went downstream. `failure` is an error that the client was told of after the commit point.

    `told_error`: the upstream told of an error itself, in an event that passed.
    """

    events: int = 0
    failure: errors.ProxyError | None = None
    told_error: bool = False


class Accompaniment(msgspec.Struct, frozen=True, eq=False):
    """What goes along with a relay: who watches it, and what must be true before its first byte.

    `hide` takes out of released events what the client must not see; None: all passes. `gaps` are told when events
    come. `headers` go with the answer. `allowance` is asked when the stream outgrows it; None: it may go on.
    """

    observer: Observer
    gaps: Gaps
    headers: RawHeaders
    durable: Callable[[], Awaitable[None]]
    hide: Callable[[bytes], bytes] | None
    allowance: Allowance | None = None


async def relay(
    exchange: Exchange, answer: Answer, upstream: Upstream, along: Accompaniment, keepalive_s: float | None
) -> Relayed:
    """Send the answer downstream, to its end.

    Raises `ProxyError` only while nothing was sent; `ConnectionError` or cancellation when the client has left.
    """
    await along.durable()
    if answer.kind == "events":
        return await _EventRelay(exchange, answer, along, EndingWatch(exchange.endpoint.shape)).run(keepalive_s)
    if answer.kind == "error":
        return await _relay_error(exchange, answer, upstream, along)
    _start(exchange, answer, along, answer.stream.head.content_length)
    return await _relay_opaque(exchange, answer, along.observer)


def sluice_headers(exchange: Exchange) -> RawHeaders:
    """The header by which an operator finds the exchange in logs."""
    return [(b"x-sluice-id", exchange.id.encode("ascii"))]


def _start(
    exchange: Exchange, answer: Answer, along: Accompaniment, content_length: int | None, secrets: Sequence[bytes] = ()
) -> None:
    """Pass the commit point: the head goes out, without `secrets`."""
    headers = to_downstream(answer.stream.head.headers)
    if secrets:
        headers = [(name, _without(value, secrets)) for name, value in headers]
    ours = sluice_headers(exchange)
    if header(headers, b"x-request-id") is None:
        headers.append((b"x-request-id", ours[0][1]))
    if answer.kind == "events":
        headers.append((b"X-Accel-Buffering", b"no"))  # nginx buffers proxied answers otherwise
        if header(headers, b"content-type") is None:
            headers.append((b"Content-Type", b"text/event-stream"))
        if header(headers, b"cache-control") is None:
            headers.append((b"Cache-Control", b"no-cache"))
    headers += ours
    headers += along.headers
    exchange.downstream.start(answer.stream.head.status, headers, content_length)


async def _relay_opaque(exchange: Exchange, answer: Answer, observer: Observer) -> Relayed:
    downstream, watchdog, stream = exchange.downstream, answer.watchdog, answer.stream
    data = stream.read_nowait()
    if data and stream.complete and not downstream.is_direct:
        observer.saw(data)
        if not downstream.write_now(data):
            watchdog.arm()  # the end waits for the client to read
    else:
        watchdog.arm()
        try:
            if not data:
                downstream.send_head()
                data = await watchdog.read()
            while data:
                observer.saw(data)
                await downstream.write(data)
                data = await watchdog.read()
        except errors.ProxyError as error:
            downstream.cut()
            return Relayed(failure=error)
    await downstream.finish()
    return Relayed()


async def _relay_error(exchange: Exchange, answer: Answer, upstream: Upstream, along: Accompaniment) -> Relayed:
    """An error answer passes with its status and body, but never with the operator's credential in it."""
    answer.watchdog.arm()
    body = _without(answer.first or await read_error(answer.stream, answer.watchdog), upstream.secrets)
    is_head = exchange.method == "HEAD"
    _start(exchange, answer, along, answer.stream.head.content_length if is_head else len(body), upstream.secrets)
    if body and not is_head:
        await exchange.downstream.write(body)
    await exchange.downstream.finish()
    return Relayed()


def _without(text: bytes, secrets: Sequence[bytes]) -> bytes:
    for secret in secrets:
        text = text.replace(secret, b"***")
    return text


class _EventRelay(Discreet):
    """The relay of a stream of events."""

    exchange: Exchange
    answer: Answer
    along: Accompaniment
    ending: EndingWatch
    scanner: EventScanner = msgspec.field(default_factory=EventScanner)
    dropped_after: int | None = None  # so many events came, whole ones are out, and what came behind them was dropped
    unsent_events: int = 0  # behind a hidden error

    async def run(self, keepalive_s: float | None) -> Relayed:
        downstream, watchdog = self.exchange.downstream, self.answer.watchdog
        watchdog.arm()
        _start(self.exchange, self.answer, self.along, None)
        if keepalive_s is not None:
            watchdog.keep_alive(keepalive_s, self._send_comment)
        failure = None
        try:
            await self._relay_events()
        except errors.ProxyError as error:
            failure = None if self._is_whole() else error
        except (ConnectionError, asyncio.CancelledError):
            if self.ending.finish_seen and not self.scanner.done and not self.along.observer.catch_up():
                self.along.observer.rest = self._read_on
            raise
        if failure is None:
            await downstream.finish()
        elif self.scanner.at_boundary or self.dropped_after is not None:
            await downstream.write(self._error_event(failure))
            await downstream.finish()
        else:
            downstream.cut()  # half of an oversize event is out: nothing readable can follow it
        events = self.scanner.events if self.dropped_after is None else self.dropped_after
        return Relayed(events - self.unsent_events, failure, self.ending.error_seen)

    async def _relay_events(self) -> None:
        downstream, feed, read = self.exchange.downstream, self.scanner.feed, self._reader()
        write, saw, observe, paused = downstream.write, self.ending.saw, self.along.observer.saw, self.along.gaps.saw
        scanner, hide, allowance = self.scanner, self.along.hide, self.along.allowance
        block = self.answer.first or self.answer.stream.read_nowait()
        if not block:
            downstream.send_head()
            block = await read()
        while block:
            was_inside = scanner.inside_event
            block = feed(block)
            if block:
                paused(time.perf_counter())
                saw(block)
                if self.ending.hidden_error_seen:
                    await self._stop_at_hidden_error(block, was_inside=was_inside)
                observe(block)
                if hide is not None:
                    block = hide(block)
                if block:
                    writing, block = write(block), b""  # held by nobody here while a slow client makes this last
                    await writing
                else:
                    downstream.send_head()  # what came is hidden whole
                self._hurry_if_whole()
                if allowance is not None and not self._is_whole():
                    await allowance.ask_for_more(self.along.observer.output_tokens())
            else:
                downstream.send_head()  # half an event came: it does not wait for the other half
            block = await read()
        await self._finish_events()

    def _reader(self) -> Callable[[], Awaitable[bytes]]:
        """What reads what the loop has to see."""
        answer, along, downstream = self.answer, self.along, self.exchange.downstream
        if not may_flow(downstream, along):
            return answer.watchdog.read
        return EventFlow(answer, downstream, along, self.scanner, self.ending, finished=self._hurry_if_whole).read

    def _hurry_if_whole(self) -> None:
        """Wait for the end of the upstream's body no longer than need be."""
        if self._is_whole():
            self.answer.watchdog.hurry(_AFTER_DONE_S)

    async def _read_on(self) -> None:
        """After the client has left behind a finish reason: read for the usage, for a while, and write nothing."""
        stream, scanner, observer = self.answer.stream, self.scanner, self.along.observer
        self.answer.watchdog.stop()
        left = errors.ProxyError(errors.CLIENT_GONE, "The client has left.")
        timer = asyncio.get_running_loop().call_later(_AFTER_FINISH_S, stream.fail, left)
        try:
            while not scanner.done and (block := await stream.read()):
                observer.saw(scanner.feed(block))
                if observer.catch_up():
                    return
        except errors.ProxyError:
            return  # what was seen until then has to do
        finally:
            timer.cancel()

    async def _finish_events(self) -> None:
        """Judge the answer, whose body has ended well.

        What is still held has no blank line, so clients drop it and it says nothing. Behind a finished answer it is
        sent as it is; in an unfinished one the error takes its place.
        """
        scanner = self.scanner
        events, between_events = scanner.events, scanner.at_boundary
        rest = scanner.finish()
        if self.ending.truncated(done=scanner.done):
            self.dropped_after = events if between_events else None
            raise errors.ProxyError(errors.UPSTREAM_PROTOCOL_ERROR, _TRUNCATED)
        if rest:
            await self._show(rest)
        elif not scanner.at_boundary and not scanner.done:
            raise errors.ProxyError(errors.UPSTREAM_PROTOCOL_ERROR, _TRUNCATED)

    async def _stop_at_hidden_error(self, block: bytes, *, was_inside: bool) -> None:
        """Send no more than that; an error event follows. `was_inside`: the block begins inside an oversize event."""
        before, self.unsent_events = parted_at_hidden_error(block)
        if before or not was_inside:
            self.dropped_after = self.scanner.events
        if before:
            await self._show(before)
        raise errors.ProxyError(errors.UPSTREAM_PROTOCOL_ERROR, _ERROR_FIELD)

    async def _show(self, data: bytes) -> None:
        """Have it looked at, and write what the client may see of it."""
        self.along.observer.saw(data)
        shown = data if self.along.hide is None else self.along.hide(data)
        if shown:
            await self.exchange.downstream.write(shown)

    def _is_whole(self) -> bool:
        """The client has a complete answer, so that how the upstream's body ends no longer matters."""
        if self.exchange.endpoint.shape == "responses":
            return self.ending.finish_seen
        return self.scanner.done and not self.ending.hidden_error_seen  # a `[DONE]` behind one is a false end

    def _send_comment(self) -> None:
        """Keep idle proxies on the way from cutting a silent stream (protocol.md section 4)."""
        scanner = self.scanner
        if scanner.at_boundary and not scanner.id_seen and not scanner.done and not self.exchange.downstream.is_waiting:
            self.exchange.downstream.write_comment(KEEPALIVE_COMMENT)

    def _error_event(self, error: errors.ProxyError) -> bytes:
        if self.exchange.endpoint.shape == "responses":
            last = self.ending.last_sequence_number
            return errors.responses_error_event(error, 0 if last is None else last + 1)
        return errors.chat_error_event(error)
