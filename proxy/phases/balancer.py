"""Give exchanges a place at an upstream: choose among the routes, or wait in the fair queue until one is free.

All of it happens within turns of the event loop: between looking and taking nobody else can take.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from proxy.core import errors
from proxy.core.balance import choose
from proxy.core.circuit import State
from proxy.core.fair_queue import FairQueue
from proxy.core.retry import CREDENTIAL_STATUSES, RETRYABLE_STATUSES
from proxy.phases.places import FAILED_STATUSES, Place, Waiter
from proxy.phases.waits import expected_wait_s, no_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.phases.places import Ask, QueueLimits
    from proxy.phases.route import Route
    from proxy.phases.upstreams import Upstream
    from proxy.telemetry.routing import RoutingMetrics

_TIMERS_LATE_S: Final = 0.005  # uvloop's may fire a little early
_LONG_QUEUE: Final = 1000  # in a longer one, nobody counts who is ahead of whom
_NEWEST_SHARE: Final = 0.1  # of the last exchange in the average time that an upstream holds one


class Balancer:
    """The places at all upstreams. `clock` is monotonic, in seconds; `draw` gives random numbers from 0 to 1."""

    def __init__(
        self, limits: QueueLimits, metrics: RoutingMetrics, clock: Callable[[], float], draw: Callable[[], float]
    ) -> None:
        self._max_wait_s = limits.max_wait_s
        self._metrics = metrics
        self._in_flight = metrics.in_flight
        self._clock = clock
        self._draw = draw
        self._queue: FairQueue[Waiter] = FairQueue(max_waiting=limits.max_waiting, max_bytes=limits.max_bytes)
        self._waiting: dict[Waiter, None] = {}

    def limit(self, limits: QueueLimits) -> None:
        """Hold those to `limits` who begin to wait from now on."""
        self._max_wait_s = limits.max_wait_s
        self._queue.max_waiting = limits.max_waiting
        self._queue.max_bytes = limits.max_bytes

    def any_open(self, upstreams: Iterable[Upstream]) -> bool:
        """One of them may be asked."""
        now_s = self._clock()
        return any(upstream.health.is_open(now_s) for upstream in upstreams)

    def waiting(self, upstream: Upstream) -> int:
        """How many wait for a place at it, those included who may go elsewhere."""
        return self._queue.waiting(upstream.name)

    def can_go_elsewhere(self, ask: Ask) -> bool:
        """A route that was not tried yet may be."""
        return any(route not in ask.tried for route in self._open(ask))

    def can_go_anywhere(self, ask: Ask) -> bool:
        """Some route may be tried, or tried again."""
        return bool(self._open(ask))

    def place_now(self, ask: Ask) -> Place | None:
        """A place on a route that was not tried yet, if there is one without waiting, and its budget has room."""
        now_s = self._clock()
        free = [
            route
            for route in self._open(ask)
            if route not in ask.tried
            and self._is_free(route.upstream)
            and route.upstream.health.budget.may_spend(now_s)
        ]
        if not free:
            return None
        chosen = self._choose(free, now_s)
        chosen.upstream.health.budget.spend(now_s)
        return self._take(chosen, ask, now_s)

    def at_once(self, ask: Ask) -> Place | None:
        """What `place` gives an exchange that was tried nowhere, where one is free and nobody waits; None: see there.

        Nearly all come this way, so it takes few steps.
        """
        if self._waiting:
            return None
        now_s, routes = self._clock(), ask.routes
        if len(routes) == 1:
            return self._take(routes[0], ask, now_s) if routes[0].upstream.health.is_free(now_s) else None
        free = [route for route in routes if route.upstream.health.is_free(now_s)]
        return self._take(self._choose(free, now_s), ask, now_s) if free else None

    async def place(self, ask: Ask) -> Place:
        """A place, at once or after waiting for it.

        Raises `ProxyError` NO_UPSTREAM, QUEUE_FULL or QUEUE_TIMEOUT, each with an honest wait.
        """
        routes = self._open(ask)
        if not routes:
            raise no_upstream(ask.routes, self._clock())
        routes = [route for route in routes if route not in ask.tried] or routes
        for route in routes:
            self.serve(route.upstream)  # one whose circuit was open may have some who wait
        free = [route for route in routes if self._is_free(route.upstream)]
        if free:
            now_s = self._clock()
            return self._take(self._choose(free, now_s), ask, now_s)
        if not ask.spends:
            # any that was not tried will do as well, should it come back
            routes = [route for route in ask.routes if route in routes or route not in ask.tried]
        return await self._wait(ask, routes)

    def answered(self, place: Place, status: int, retry_after_s: float | None) -> None:
        """Note that an upstream works, or failed, and what it said of the key; `retry_after_s` is what it asked for."""
        if status in FAILED_STATUSES:
            place.failed()
            return
        place.was_judged = True
        upstream, circuit, now_s = place.route.upstream, place.circuit, self._clock()
        health, credentials, was_open = upstream.health, place.credentials, circuit.is_open
        circuit.succeeded(place.ticket, now_s)
        is_of_the_key = status == 429 or status in CREDENTIAL_STATUSES
        if not is_of_the_key or upstream.auth == "passthrough":  # then the key is the client's, and so is its trouble
            health.is_failing = status in RETRYABLE_STATUSES
            credentials.succeeded(place.api_key)
        elif status == 429:
            health.is_failing = True
            credentials.limited(place.api_key, now_s, retry_after_s)
        else:
            credentials.refused(place.api_key, now_s)
        if was_open:
            self._show(upstream)
            self.serve(upstream)  # it was left alone while some waited

    def failed(self, place: Place) -> None:
        """Note that an upstream failed; who waits for nothing else is told so when its circuit opens."""
        upstream, circuit, now_s = place.route.upstream, place.circuit, self._clock()
        upstream.health.is_failing = True
        was_open = circuit.state(now_s) is State.OPEN
        circuit.failed(place.ticket, now_s, self._draw())
        if circuit.state(now_s) is State.OPEN and not was_open:
            # some may wait for it and for others, and nobody else may come or leave meanwhile
            wait_s = circuit.retry_in_s(now_s) + _TIMERS_LATE_S
            asyncio.get_running_loop().call_later(wait_s, self.changed, upstream)
            self.refuse_hopeless()
        self._show(upstream)

    def left(self, place: Place, taken_s: float) -> None:
        """Take a place back, and give it to the next in the queue."""
        upstream = place.route.upstream
        health = upstream.health
        if place.circuit.is_open:
            place.circuit.abandoned(place.ticket)
        self._in_flight[upstream.name] = health.in_flight = health.in_flight - 1
        held_s, before_s = self._clock() - taken_s, health.held_s
        health.held_s = before_s + (held_s - before_s) * _NEWEST_SHARE if before_s else held_s
        if self._waiting:
            self.serve(upstream)

    def changed(self, upstream: Upstream) -> None:
        """Take note that an upstream was probed, drained or let back: some who wait may go on, or need not wait."""
        self._show(upstream)
        self.serve(upstream)
        self.refuse_hopeless()

    def serve(self, upstream: Upstream) -> None:
        """Give the free places of an upstream to those who wait."""
        while self._waiting and upstream.health.has_room and upstream.health.admits(self._clock()):
            waiter = self._queue.pop(upstream.name)
            if waiter is None:
                return
            self._waiting.pop(waiter, None)
            self._show_queue(waiter.routes)
            if not waiter.given.done():  # else it has left, and takes itself out later
                # by name: after a reload it may be another object that stands for the same upstream
                route = next(route for route in waiter.routes if route.upstream.name == upstream.name)
                self._metrics.waited(upstream.name, self._clock() - waiter.since_s)
                waiter.given.set_result(self._take(route, waiter.ask, self._clock()))

    def refuse_hopeless(self) -> None:
        """Tell those who wait only for upstreams that are not asked any more."""
        now_s = self._clock()
        for waiter in list(self._waiting):
            hopeless = not any(route.upstream.health.admits(now_s) for route in waiter.routes)
            if hopeless and not waiter.given.done():
                waiter.given.set_exception(no_upstream(waiter.routes, now_s))

    def _open(self, ask: Ask) -> list[Route]:
        """The routes whose upstreams may be asked."""
        now_s = self._clock()
        routes = ask.routes if ask.only is None else (ask.only,)
        found = [route for route in routes if route.upstream.health.admits(now_s)]
        return [route for route in found if self._may_retry(route, ask, now_s)] if ask.spends else found

    @staticmethod
    def _may_retry(route: Route, ask: Ask, now_s: float) -> bool:
        """Whether what was tried in vain may be tried there: an upstream that works takes over from others freely."""
        health = route.upstream.health
        return not (health.is_failing or route in ask.asked) or health.budget.may_spend(now_s)

    def _is_free(self, upstream: Upstream) -> bool:
        """It has room, and nobody waits for it."""
        return upstream.health.has_room and not self._queue.waiting(upstream.name)

    def _choose(self, free: Sequence[Route], now_s: float) -> Route:
        """The best of routes that are free: by priority, then load; those whose keys all cool down come last."""
        if len(free) == 1:
            return free[0]
        ready = [route for route in free if route.upstream.health.credentials.is_ready(now_s)] or free
        if len(ready) == 1:
            return ready[0]
        lowest = min(route.priority for route in ready)
        return choose([route for route in ready if route.priority == lowest], self._draw)

    def _take(self, route: Route, ask: Ask, now_s: float) -> Place:
        upstream, health = route.upstream, route.upstream.health
        circuit, credentials = health.circuit, health.credentials
        ticket = circuit.enter(now_s)
        if ticket is None:
            raise RuntimeError("a circuit that admitted did not let enter")
        if not ask.is_counted:
            ask.is_counted = True
            health.budget.request(now_s)
        elif ask.spends and (health.is_failing or route in ask.asked):
            health.budget.spend(now_s)
        self._in_flight[upstream.name] = health.in_flight = health.in_flight + 1
        ask.tried += (route,)
        ask.asked += (route,)
        if circuit.is_open:  # half open, at the latest now
            self._show(upstream)
        return Place(route, credentials.next(now_s), circuit, credentials, self, ticket, now_s)

    async def _wait(self, ask: Ask, routes: Sequence[Route]) -> Place:
        """Wait for a place; whoever leaves while he waits is out of the queue at once, and holds nothing."""
        waiter = Waiter(ask, routes, self._clock())
        names = frozenset(route.upstream.name for route in routes)
        if not self._queue.push(ask.key_id, ask.weight, waiter, names, ask.size_bytes):
            crowders = self._queue.crowders(ask.key_id, ask.size_bytes)
            if crowders is None:
                raise self._queue_full(routes)
            for crowder in crowders:
                self._push_out(crowder)
            self._queue.push(ask.key_id, ask.weight, waiter, names, ask.size_bytes)
        self._waiting[waiter] = None
        self._show_queue(routes)
        ahead = self._queue.position(waiter) if len(self._queue) <= _LONG_QUEUE else len(self._queue) - 1
        self._metrics.queued(routes[0].upstream.name, ahead)
        ask.waits()
        timer = asyncio.get_running_loop().call_later(self._max_wait_s, self._expire, waiter)
        try:
            return await waiter.given
        except BaseException:
            self._withdraw(waiter)
            raise
        finally:
            timer.cancel()

    def _push_out(self, waiter: Waiter) -> None:
        """Make room: no key may fill the queue so that others cannot even wait."""
        self._forget(waiter)
        if not waiter.given.done():
            waiter.given.set_exception(self._queue_full(waiter.routes))

    def _forget(self, waiter: Waiter) -> None:
        """It waits no longer, without a place."""
        self._queue.remove(waiter)
        self._waiting.pop(waiter, None)
        self._show_queue(waiter.routes)
        self._metrics.waited(waiter.routes[0].upstream.name, self._clock() - waiter.since_s)

    def _queue_full(self, routes: Sequence[Route]) -> errors.ProxyError:
        message = "Too many requests wait for this model."
        return errors.ProxyError(errors.QUEUE_FULL, message, retry_after_s=expected_wait_s(routes, self._queue.waiting))

    def _withdraw(self, waiter: Waiter) -> None:
        if waiter in self._waiting:
            self._forget(waiter)
        given = waiter.given
        if given.done() and not given.cancelled() and given.exception() is None:
            given.result().leave()  # it came in the very turn in which the waiting ended

    def _expire(self, waiter: Waiter) -> None:
        if not waiter.given.done():
            message = "No upstream had room for this request in time."
            wait_s = expected_wait_s(waiter.routes, self._queue.waiting)
            waiter.given.set_exception(errors.ProxyError(errors.QUEUE_TIMEOUT, message, retry_after_s=wait_s))

    def _show(self, upstream: Upstream) -> None:
        health = upstream.health
        self._metrics.stands(upstream.name, health.in_flight, health.circuit.state(self._clock()))

    def _show_queue(self, routes: Sequence[Route]) -> None:
        for name in {route.upstream.name for route in routes}:
            self._metrics.waiting(name, self._queue.waiting(name))
