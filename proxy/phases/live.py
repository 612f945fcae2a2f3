"""Exchanges under way, as they are seen from outside: which there are, what it takes to end them, and who did."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core import errors
from proxy.phases.exchange import PHASES
from proxy.phases.record import Findings

if TYPE_CHECKING:
    from proxy.phases.exchange import Exchange
    from proxy.phases.watchdog import StallWatch, Watchdog

# one that is cut is told why, and its client has this long to take the message
_LAST_WORDS_S: Final = 2.0


class Live(msgspec.Struct):
    """What is known of a live exchange so far, and what it takes to end it from outside."""

    task: asyncio.Task[object] | None  # until it has ended
    findings: Findings = msgspec.field(default_factory=Findings)
    watchdog: Watchdog | StallWatch | None = None
    interruption: errors.ProxyError | None = None

    def interrupt(self, exchange: Exchange, error: errors.ProxyError) -> None:
        """End it with `error`, as honestly as its phase allows. Nothing is added to an interruption before."""
        if self.interruption is not None:
            return
        self.interruption = error
        answer = self.findings.answer
        if answer is not None and exchange.downstream.started:
            answer.stream.fail(error)
        elif self.task is not None and exchange.timeline.phase != "settle":
            self.task.cancel()  # a settlement ends by itself

    def go_on(self) -> None:
        """The interruption is known: go on, to tell of it."""
        if self.task is not None:
            self.task.uncancel()


class LiveExchanges:
    """All exchanges of this process that have not ended, whatever configuration they began with."""

    def __init__(self) -> None:
        self._live: dict[Exchange, Live] = {}
        self._idle: asyncio.Event | None = None  # somebody waits for none to be live
        self.refusal: errors.ProxyError | None = None  # why exchanges to come end before they begin

    def __len__(self) -> int:
        return len(self._live)

    def add(self, exchange: Exchange, task: asyncio.Task[object]) -> Live:
        """One has begun, in that task."""
        live = self._live[exchange] = Live(task)
        return live

    def remove(self, exchange: Exchange) -> None:
        """One has ended, its settlement included."""
        self._live.pop(exchange).task = None  # a task that was cancelled holds the frames, which hold this
        if self._idle is not None and not self._live:
            self._idle.set()
            self._idle = None

    def all(self) -> list[tuple[Exchange, Live]]:
        """Those there are, in the order in which they began."""
        return list(self._live.items())

    def by_phase(self) -> dict[str, float]:
        """How many there are in each phase. May be called in any thread."""
        counts = Counter(exchange.timeline.phase for exchange in self._live.copy())
        return {phase: counts[phase] for phase in PHASES if phase != "done"}

    async def idle(self) -> None:
        """Wait until none is live."""
        if self._live:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    def interrupt(self, error: errors.ProxyError) -> None:
        """End all of them with `error`, and refuse those to come."""
        self.refusal = error
        for exchange, live in self.all():
            live.interrupt(exchange, error)

    def cut(self, exchange_id: str, error: errors.ProxyError) -> bool:
        """End one of them with `error`; False if it is not there. A client that does not read it is dropped."""
        for exchange, live in self._live.items():
            if exchange.id == exchange_id:
                live.interrupt(exchange, error)
                asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._drop, exchange)
                return True
        return False

    def _drop(self, exchange: Exchange) -> None:
        if exchange in self._live and exchange.timeline.phase != "settle":
            exchange.downstream.abort()


def who_ended(live: Live) -> tuple[errors.ProxyError, str]:
    """Why an exchange was cancelled or lost its client, and the word for who did it."""
    if live.interruption is not None:
        return live.interruption, cutter_of(live.interruption)
    if live.watchdog is not None and live.watchdog.fired == "write_stall":
        return errors.ProxyError(errors.CLIENT_STALLED, "The client stopped reading."), "write_stall"
    return errors.ProxyError(errors.CLIENT_GONE, "The client has left."), "client"


def cutter_of(interruption: errors.ProxyError) -> str:
    """The word for who interrupted: drain, operator or quota."""
    return _CUTTERS.get(interruption.kind, "drain")


_CUTTERS = {errors.CUT_BY_OPERATOR: "operator"}
