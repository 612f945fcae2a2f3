"""The fast form of the relay's read: usual events go from one transport to the other in the callback they arrive in.

Between two reads of the plain loop usual events may come: whole ones, of which nothing is to be judged. They need no
task: they are looked at and written at once. What is anything else, and every end, is left for the plain loop to read,
as if it had come just then; so there is one place where a stream is judged, and the order of its bytes is kept.

A write that fills the client's transport ends the flow too: then the upstream's connection holds what comes, and stops
reading, until the client has read.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from proxy.core.alike import KEPT_FOR_EACH, AlikeEvents

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from proxy.core.ending import EndingWatch
    from proxy.core.sse import EventScanner
    from proxy.phases.exchange import Downstream, Sink
    from proxy.phases.forward import Answer
    from proxy.phases.relay import Accompaniment

# Once so many passed all are told of them. As many of the largest, and the read that goes beyond, are less than 64 KiB.
_MAX_UNTOLD: Final = 20
_MAX_KEPT: Final = KEPT_FOR_EACH * _MAX_UNTOLD
_IN_ONE_READ: Final = -1.0  # with the event before


def may_flow(downstream: Downstream, along: Accompaniment) -> bool:
    """Whether events may go past the loop: not to a client of HTTP/1.0, nor where leave must be asked for them."""
    return downstream.is_direct and along.allowance is None


class EventFlow:
    """Relays usual events while the plain loop waits for others, with the loop's own scanner, watches and hider.

    Only where `may_flow`. `finished` is called with each write behind a finish.
    """

    __slots__ = ("_alike", "_client", "_downstream", "_end", "_ending", "_finished", "_gaps", "_hide", "_is_chat",
                 "_observer", "_scanner", "_stream", "_watchdog")  # fmt: skip

    def __init__(
        self,
        answer: Answer,
        downstream: Downstream,
        along: Accompaniment,
        scanner: EventScanner,
        ending: EndingWatch,
        *,
        finished: Callable[[], object],
    ) -> None:
        self._stream = answer.stream
        self._watchdog = answer.watchdog
        self._downstream = downstream
        self._gaps = along.gaps
        self._observer = along.observer
        self._hide = along.hide
        self._scanner = scanner
        self._ending = ending
        self._is_chat = ending.is_chat
        self._alike = AlikeEvents()
        self._client: Sink  # while there is a flow
        self._finished = finished
        self._end: asyncio.Future[None] | None = None  # of the flow, while there is one

    async def read(self) -> bytes:
        """The next bytes that are for the plain loop, b"" at the clean end. Raises as `Watchdog.read` does.

        Raises `ConnectionError` too, when the client has left.
        """
        while not (data := self._stream.read_nowait()):
            if not self._stream.is_open:
                return await self._watchdog.read()
            await self._flow()
            if self._downstream.is_full:
                await self._downstream.drain()
        return data

    async def _flow(self) -> None:
        """Relay what comes until something else comes, or the client's transport is full."""
        self._client = self._downstream.flow(self._stop)
        self._end = self._watchdog.loop.create_future()
        self._alike.forget()
        self._watchdog.flows(self)
        self._stream.flow_into(self._arrived)
        try:
            await self._end
        finally:
            self._end = None  # it may hold an error, whose frames hold this flow
            del self._client
            self._stream.flow_into(None)
            self._downstream.end_flow()
            self._watchdog.flows(None)
            self.catch_up()

    def passed(self, data: bytes) -> bytes:
        """Called by the connection with each read, once an event was learnt; returns what is not like it.

        What it takes is what an event costs. That the client left, or must read before more comes, is told by its side.
        """
        try:
            alike = self._alike
            shown = alike.shown(data, perf_counter())
            if shown is None:
                return self._first_passed(data)
            self._client.write(shown)
            if len(alike.kept) > _MAX_KEPT:
                self.catch_up()
        except Exception as error:  # noqa: BLE001 - as in `_arrived`
            self._stop(error=error)
        return b""

    def _first_passed(self, data: bytes) -> bytes:
        """The same for a read that is not one chunk: pass on the first ones that are, in one write."""
        chunks: list[bytes] = []
        now_s = perf_counter()
        while (end := data.find(b"\r\n", data.find(b"\r\n") + 2) + 2) > 1:
            shown = self._alike.shown(data[:end], now_s)
            if shown is None:
                break
            chunks.append(shown)
            data = data[end:]
            now_s = _IN_ONE_READ
        if chunks:
            self._client.write(b"".join(chunks))
        if data or len(self._alike.kept) > _MAX_KEPT // 2:  # one read more may hold as many again
            self.catch_up()
        return data

    def catch_up(self) -> None:
        """Tell all who follow the stream what passed since they were last told: together it costs them less."""
        if not self._alike.kept:
            return
        passed = self._alike.take()
        self._stream.passed_chunks(passed.body_bytes)
        self._downstream.flowed(passed.shown_bytes, passed.chunk_bytes)
        self._scanner.events += passed.events
        self._gaps.saw_all(passed.times_s)
        self._observer.saw(passed.said)

    def _arrived(self, data: bytes) -> None:
        """Called by the connection. Errors are raised where they can be handled: in the exchange's task."""
        try:
            # an event that may tell of an error is for the loop to judge
            if b"error" in data or not self._scanner.takes(data):
                self._stop(data)
                return
            self._gaps.saw(perf_counter())
            finish_seen = self._ending.flowed(data)
            self._observer.saw(data)
            shown = data if (hide := self._hide) is None else hide(data)
            goes_on = not shown or self._downstream.write_now(shown)
            if finish_seen:
                self._stream.tap(None)
                self._finished()
            elif self._is_chat and goes_on:
                self._stream.tap(self if self._alike.learn(data, shown) else None)
            if not goes_on:
                self._stop()
        except Exception as error:  # noqa: BLE001 - as the docstring says
            self._stop(error=error)

    def _stop(self, data: bytes = b"", error: Exception | None = None) -> None:
        """Let the plain loop go on, with `data`."""
        self._stream.flow_into(None)
        self._stream.unread(data)
        end = self._end
        if end is None or end.done():
            return
        if error is None:
            end.set_result(None)
        else:
            end.set_exception(error)

    def silent_s(self) -> float:
        """For how long nothing had come when they were told."""
        return perf_counter() - self._gaps.last_s
