"""`/admin/exchanges` and `/admin/upstreams`: what all workers say together, and what all are told."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from proxy.admin.inside import Circuit, Cut, Exchanges, Stands, WhichExchanges, WhichUpstreams
from proxy.server.admin_routes import Asked, Refusal, Route, Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.admin.inside import Processes
    from proxy.config.settings import Config

_WORST_LAST: Final[tuple[Circuit, ...]] = ("closed", "half_open", "open")
NoAnswer = Annotated[list[int], Meta(description="workers that did not answer in time: what they know is missing")]
Worker = Annotated[int, Meta(description="the number of a worker; 1 where there is one process")]
_Name = Annotated[str, Meta(description="as in the configuration")]
_Waiting = Annotated[int, Meta(description="exchanges in the queue that it could serve")]
_RetryIn = Annotated[float, Meta(description="seconds until it is asked again; 0 if it is")]
_Cooling = Annotated[int, Meta(description="credentials that were refused or limited, and rest")]


class InFlightThere(msgspec.Struct, frozen=True):
    """An exchange in flight; null is what is not known yet."""

    id: Annotated[str, Meta(description="as in x-sluice-id and the log")]
    worker: Worker
    key: Annotated[str | None, Meta(description="the id of the client's key")]
    endpoint: str
    model: Annotated[str | None, Meta(description="the configured name or pattern that serves it")]
    upstream: Annotated[str | None, Meta(description="who was asked last, or is about to be")]
    phase: Annotated[str, Meta(description="authenticate, admit, route, queue, forward, relay or settle")]
    age_s: Annotated[float, Meta(description="seconds since the request's head")]
    attempts: Annotated[int, Meta(description="tries at upstreams so far")]
    sent_bytes: Annotated[int, Meta(description="of the answer's body, so far")]
    streamed: bool


class ExchangeList(msgspec.Struct, frozen=True):
    """Exchanges in flight, those that have lasted longest first."""

    exchanges: list[InFlightThere]
    total: Annotated[int, Meta(description="how many there are, those that are not listed included")]
    no_answer: NoAnswer


class ListExchanges(msgspec.Struct, forbid_unknown_fields=True):
    """What of them to list."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="how many at most; 1000 if not given")] = 1000


class CutThere(msgspec.Struct, frozen=True):
    """An exchange that ends: its client is told so, as far as it reads, and it is settled."""

    id: str
    worker: Worker


class StandsThere(msgspec.Struct, frozen=True):
    """How an upstream is doing in the eyes of one worker."""

    worker: Worker
    drained: bool
    in_flight: int
    max_concurrency: int | None
    waiting: _Waiting
    circuit: Circuit
    retry_in_s: _RetryIn
    credentials: int
    credentials_cooling: _Cooling
    connections_open: int
    connections_idle: int


class UpstreamStands(msgspec.Struct, frozen=True):
    """How an upstream is doing: numbers are sums over the workers, circuit and credentials the worst of any."""

    name: _Name
    drained: Annotated[bool, Meta(description="it gets no new exchange")]
    in_flight: int
    max_concurrency: Annotated[int | None, Meta(description="of all workers together; null: no limit")]
    waiting: _Waiting
    circuit: Circuit
    retry_in_s: _RetryIn
    credentials: Annotated[int, Meta(description="how many are configured")]
    credentials_cooling: _Cooling
    connections_open: int
    connections_idle: int
    workers: list[StandsThere]


class UpstreamList(msgspec.Struct, frozen=True):
    """The upstreams, in the order of the configuration."""

    upstreams: list[UpstreamStands]
    no_answer: NoAnswer


class DrainWanted(msgspec.Struct, forbid_unknown_fields=True):
    """Whether it is to be drained or let back."""

    drain: Annotated[bool, Meta(description="true: no new exchange; false: it is let back")]


class Drained(msgspec.Struct, frozen=True):
    """What holds for an upstream from now on, until it is changed again or the service ends."""

    name: _Name
    drained: bool
    workers: Annotated[list[int], Meta(description="workers that have confirmed it")]
    no_answer: Annotated[list[int], Meta(description="workers that have not, in time: ask again")]


class ProcessRoutes:
    """The routes about what happens now."""

    def __init__(self, processes: Processes, config: Callable[[], Config]) -> None:
        self._processes = processes
        self._config = config

    def routes(self) -> tuple[Route, ...]:
        """The rows of the table."""
        one = "/admin/exchanges/{id}"
        drain = "/admin/upstreams/{name}/drain"
        return (
            Route("GET", "/admin/exchanges", "Exchanges in flight.", self._list, ExchangeList, query=ListExchanges),
            Route(
                *("DELETE", one, "End an exchange.", self._cut, CutThere, 202),
                action="exchanges.cut",
                refusals=(404, 504),
            ),
            Route("GET", "/admin/upstreams", "How upstreams are doing.", self._stand, UpstreamList),
            Route(
                *("POST", drain, "Give an upstream no new exchange, or let it back.", self._drain, Drained),
                body=DrainWanted,
                action="upstreams.drain",
                refusals=(404,),
            ),
        )

    async def _list(self, asked: Asked) -> Told:
        most: int = asked.query.limit
        answers = await self._processes.ask(WhichExchanges(most))
        total = 0
        listed: list[InFlightThere] = []
        for worker, data in answers.by_worker.items():
            found = msgspec.msgpack.decode(data, type=Exchanges)
            total += found.total
            listed += [InFlightThere(worker=worker, **msgspec.structs.asdict(one)) for one in found.exchanges]
        listed.sort(key=lambda one: -one.age_s)
        return Told(ExchangeList(listed[:most], total, answers.silent))

    async def _cut(self, asked: Asked) -> Told:
        exchange_id = asked.names["id"]
        answers = await self._processes.ask(Cut(exchange_id))
        for worker, data in answers.by_worker.items():
            if msgspec.msgpack.decode(data, type=bool):
                return Told(CutThere(exchange_id, worker), exchange_id)
        if answers.silent:
            raise Refusal(504, "no_answer", f"None has it of those that answered; {_named(answers.silent)} did not.")
        raise Refusal(404, "not_found", "No exchange of that id is in flight.")

    async def _stand(self, _: Asked) -> Told:
        answers = await self._processes.ask(WhichUpstreams())
        found: dict[str, list[StandsThere]] = defaultdict(list)
        for worker, data in sorted(answers.by_worker.items()):
            for one in msgspec.msgpack.decode(data, type=list[Stands]):
                told = msgspec.structs.asdict(one)
                found[told.pop("name")].append(StandsThere(worker=worker, **told))
        known = [name for name in self._config().upstreams if name in found]
        return Told(UpstreamList([_together(name, found[name]) for name in known], answers.silent))

    async def _drain(self, asked: Asked) -> Told:
        name, is_drained = asked.names["name"], asked.body.drain
        if name not in self._config().upstreams:
            raise Refusal(404, "not_found", "There is no upstream of that name.")
        answers = await self._processes.drain(name, is_drained=is_drained)
        told = Drained(name, is_drained, sorted(answers.by_worker), answers.silent)
        return Told(told, name, details={"drain": is_drained, "no_answer": answers.silent})


def _named(workers: Iterable[int]) -> str:
    return ", ".join(f"worker {number}" for number in workers)


def _together(name: str, workers: list[StandsThere]) -> UpstreamStands:
    limits = [one.max_concurrency for one in workers if one.max_concurrency is not None]
    return UpstreamStands(
        name=name,
        drained=any(one.drained for one in workers),
        in_flight=sum(one.in_flight for one in workers),
        max_concurrency=sum(limits) if len(limits) == len(workers) else None,
        waiting=sum(one.waiting for one in workers),
        circuit=max((one.circuit for one in workers), key=_WORST_LAST.index),
        retry_in_s=max(one.retry_in_s for one in workers),
        credentials=max(one.credentials for one in workers),
        credentials_cooling=max(one.credentials_cooling for one in workers),
        connections_open=sum(one.connections_open for one in workers),
        connections_idle=sum(one.connections_idle for one in workers),
        workers=workers,
    )
