"""What an exchange asks of the upstreams, and what it gets: a place at one of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.core.circuit import Circuit, Ticket
    from proxy.core.cooldown import Credentials
    from proxy.phases.route import Route
    from proxy.phases.upstreams import Upstream

# an upstream that says so is overloaded or broken; a 429 is about a key
FAILED_STATUSES: Final = frozenset({500, 502, 503, 504, 529})


class Ask(msgspec.Struct, eq=False):
    """What an exchange wants: a place on one of `routes`, rather on none of the `tried`.

    `waits` is called when it has to wait. `spends`: an upstream has worked on it in vain, so that one that was `asked`
    already, or that fails at present, may only be asked within its retry budget. `is_counted`: a retry budget has it
    among its requests. `only`: the one route that will do, where another API key may help.
    """

    key_id: str
    weight: float
    size_bytes: int
    routes: Sequence[Route]
    waits: Callable[[], None]
    tried: tuple[Route, ...] = ()
    asked: tuple[Route, ...] = ()
    spends: bool = False
    is_counted: bool = False
    only: Route | None = None


class Keeper(Protocol):
    """Who keeps the places, and learns through them how upstreams are doing."""

    def failed(self, place: Place) -> None:
        """The upstream failed, before its answer or in the middle of it."""

    def left(self, place: Place, taken_s: float) -> None:
        """The place is free again; it was taken at `taken_s`."""


class Place(msgspec.Struct, eq=False):
    """A turn at an upstream, from before it is asked until its answer is over. Whoever holds it calls `leave`.

    `circuit` and `credentials` are those of the moment: a reload may put others in their place. `was_asked`: the
    upstream was given the request; `was_judged`: something came of it.
    """

    route: Route
    api_key: int
    circuit: Circuit
    credentials: Credentials
    _keeper: Keeper
    ticket: Ticket
    _taken_s: float | None
    _has_failed: bool = False
    was_asked: bool = False
    was_judged: bool = False

    @property
    def upstream(self) -> Upstream:
        """Where it is."""
        return self.route.upstream

    def failed(self) -> None:
        """It failed, before its answer or in the middle of it."""
        self.was_judged = True
        if not self._has_failed:
            self._has_failed = True
            self._keeper.failed(self)

    def leave(self) -> None:
        """Give the place to the next one; idempotent. Without a word before, nothing was learned of the upstream."""
        taken_s, self._taken_s = self._taken_s, None
        if taken_s is not None:
            self._keeper.left(self, taken_s)


class Waiter:
    """One exchange in the queue; `given` becomes its place, or the error that ends the waiting."""

    __slots__ = ("ask", "given", "routes", "since_s")

    def __init__(self, ask: Ask, routes: Sequence[Route], since_s: float) -> None:
        self.ask = ask
        self.routes = routes
        self.since_s = since_s
        self.given: asyncio.Future[Place] = asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many may wait, with how many bytes of request bodies in all, and for how long."""

    max_waiting: int
    max_bytes: int
    max_wait_s: float
