"""A balancer whose clock and dice are in the test's hand, and exchanges that ask it for places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from proxy.phases.balancer import Balancer
from proxy.phases.places import Ask, QueueLimits
from proxy.phases.route import Route
from proxy.telemetry.routing import RoutingMetrics
from tests.fakes.routes import health, upstream

if TYPE_CHECKING:
    from proxy.phases.upstreams import Upstream


class Stage:
    """A balancer with upstreams `a`, `b`, …; `now_s` is its time, `drawn` what it draws next."""

    def __init__(self, **limits: Any) -> None:
        self.now_s = 1000.0
        self.drawn = 0.0
        self.waits = 0
        self.registry = CollectorRegistry()
        self.balancer = Balancer(
            QueueLimits(**{"max_waiting": 100, "max_bytes": 10_000, "max_wait_s": 60.0, **limits}),
            RoutingMetrics(self.registry),
            lambda: self.now_s,
            lambda: self.drawn,
        )

    def ask(self, *routes: Route, key: str = "k", size_bytes: int = 0, **more: Any) -> Ask:
        """What an exchange wants."""
        return Ask(key, 1.0, size_bytes, routes, self._waits, **more)

    def _waits(self) -> None:
        self.waits += 1

    @property
    def waiting(self) -> int:
        """How many wait; the queue and its index agree."""
        count = len(self.balancer._queue)
        assert count == len(self.balancer._waiting)
        return count

    def gauge(self, name: str, at: str) -> float:
        value = self.registry.get_sample_value(name, {"upstream": at})
        assert value is not None
        return value


def at(name: str, max_concurrency: int | None = None, *, keys: int = 1, **breaker: Any) -> Upstream:
    """An upstream that nothing is sent to."""
    condition = health(keys, max_concurrency, **{"failures": 2, **breaker})
    return upstream(name, health=condition, api_keys=[b"k%d" % number for number in range(keys)])


def route(to: Upstream, **settings: Any) -> Route:
    return Route(to, **settings)
