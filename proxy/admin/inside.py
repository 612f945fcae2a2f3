"""One process as operators see it from inside: its exchanges in flight, how its upstreams stand, and who may be cut.

Under a supervisor these questions come over a Unix socket; alone a process asks itself. Never any content.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import msgspec

from proxy.core import errors
from proxy.core.circuit import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.phases.balancer import Balancer
    from proxy.phases.exchange import Exchange
    from proxy.phases.live import Live, LiveExchanges
    from proxy.phases.upstreams import Upstream

Circuit = Literal["closed", "half_open", "open"]

ALONE: Final = 1  # the number of a worker that has no supervisor
_CIRCUITS: Final[dict[State, Circuit]] = {
    State.CLOSED: "closed",
    State.HALF_OPEN: "half_open",
    State.OPEN: "open",
}


class WhichExchanges(msgspec.Struct, frozen=True, tag=True):
    """The `most` that have lasted longest. Answered with `Exchanges`."""

    most: int


class Cut(msgspec.Struct, frozen=True, tag=True):
    """End that exchange. Answered with whether it is there."""

    exchange_id: str


class WhichUpstreams(msgspec.Struct, frozen=True, tag=True):
    """Answered with a list of `Stands`."""


class SetDrained(msgspec.Struct, frozen=True, tag=True):
    """These upstreams, and no others, get no new exchange. Answered with true."""

    names: tuple[str, ...]


Question = WhichExchanges | Cut | WhichUpstreams | SetDrained


class InFlight(msgspec.Struct, frozen=True):
    """An exchange in flight, as far as it is known by now."""

    id: str
    key: str | None
    endpoint: str
    model: str | None
    upstream: str | None
    phase: str
    age_s: float
    attempts: int
    sent_bytes: int
    streamed: bool


class Exchanges(msgspec.Struct, frozen=True):
    """Some of the `total` in flight."""

    total: int
    exchanges: list[InFlight]


class Stands(msgspec.Struct, frozen=True):
    """How an upstream is doing in the eyes of one worker."""

    name: str
    drained: bool
    in_flight: int
    max_concurrency: int | None
    waiting: int
    circuit: Circuit
    retry_in_s: float
    credentials: int
    credentials_cooling: int
    connections_open: int
    connections_idle: int


class Answers(NamedTuple):
    """What each worker answered, by its number, as msgpack; and the workers that did not answer in time."""

    by_worker: dict[int, bytes]
    silent: list[int]


class Processes(Protocol):
    """Those that serve exchanges: one, or the workers of a supervisor."""

    async def ask(self, question: Question) -> Answers:
        """Ask all of them. Takes a bounded time."""

    async def drain(self, upstream: str, *, is_drained: bool) -> Answers:
        """Give an upstream no new exchange, or let it back: in all of them, those that are started later included."""


class Inside:
    """The process itself. `upstreams` are those of the configuration in force; `drained` is kept for those to come."""

    def __init__(
        self,
        live: LiveExchanges,
        balancer: Balancer,
        upstreams: Callable[[], Mapping[str, Upstream]],
        drained: set[str],
    ) -> None:
        self._live = live
        self._balancer = balancer
        self._upstreams = upstreams
        self._drained = drained

    async def ask(self, question: Question) -> Answers:
        """Ask it as the only one."""
        return Answers({ALONE: self.answered(packed(question))}, [])

    async def drain(self, upstream: str, *, is_drained: bool) -> Answers:
        """Likewise."""
        return await self.ask(SetDrained(tuple(with_drained(self._drained, upstream, is_drained=is_drained))))

    def answered(self, question: bytes) -> bytes:
        """The answer to a `Question`, both as msgpack. Raises `msgspec.DecodeError`."""
        return msgspec.msgpack.encode(self._answer(msgspec.msgpack.decode(question, type=Question)))

    def _answer(self, question: Question) -> object:
        match question:
            case WhichExchanges(most):
                return self._exchanges(most)
            case Cut(exchange_id):
                told = errors.ProxyError(errors.CUT_BY_OPERATOR, "An operator of this proxy has ended the request.")
                return self._live.cut(exchange_id, told)
            case WhichUpstreams():
                now_s = time.monotonic()
                return [self._stands(upstream, now_s) for upstream in self._upstreams().values()]
            case SetDrained(names):
                return self._drain(set(names))

    def _exchanges(self, most: int) -> Exchanges:
        now_s = time.perf_counter()
        there = self._live.all()
        return Exchanges(len(there), [_in_flight(exchange, live, now_s) for exchange, live in there[:most]])

    def _drain(self, names: set[str]) -> bool:
        self._drained.clear()
        self._drained.update(names)
        for upstream in self._upstreams().values():
            if upstream.health.is_drained != (upstream.name in names):
                upstream.health.is_drained = upstream.name in names
                self._balancer.changed(upstream)
        return True

    def _stands(self, upstream: Upstream, now_s: float) -> Stands:
        health = upstream.health
        return Stands(
            name=upstream.name,
            drained=health.is_drained,
            in_flight=health.in_flight,
            max_concurrency=health.max_concurrency,
            waiting=self._balancer.waiting(upstream),
            circuit=_CIRCUITS[health.circuit.state(now_s)],
            retry_in_s=round(health.circuit.retry_in_s(now_s), 3),
            credentials=len(upstream.api_keys),
            credentials_cooling=health.credentials.cooling(now_s) if upstream.api_keys else 0,
            connections_open=upstream.pool.open,
            connections_idle=upstream.pool.idle,
        )


def packed(question: Question) -> bytes:
    """A question as it is sent."""
    return msgspec.msgpack.encode(question)


def with_drained(drained: set[str], upstream: str, *, is_drained: bool) -> list[str]:
    """The names of drained upstreams when one more is, or one fewer."""
    return sorted(drained | {upstream} if is_drained else drained - {upstream})


def _in_flight(exchange: Exchange, live: Live, now_s: float) -> InFlight:
    found = live.findings
    is_stream = found.answer is not None and found.answer.kind == "events"
    if found.answer is not None:
        found.answer.watchdog.catch_up()  # else what was sent is counted now and then
    return InFlight(
        id=exchange.id,
        key=None if found.principal is None else found.principal.key_id,
        endpoint=exchange.endpoint.name,
        model=None if found.target is None else found.target.label,
        upstream=found.upstream,
        phase=exchange.timeline.phase,
        age_s=round(now_s - exchange.timeline.arrived_s, 3),
        attempts=0 if found.account is None else found.account.attempts,
        sent_bytes=exchange.downstream.sent_bytes,
        streamed=is_stream or (found.admission is not None and found.admission.streamed),
    )
