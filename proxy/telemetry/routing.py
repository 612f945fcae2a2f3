"""The metrics of upstreams: what was asked of them, how they stand, and who waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.telemetry.plain import PlainCounter, PlainGauge, PlainHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

# upstreams stand in the configuration: some tens of them, each with some ten results
_MAX_LABEL_SETS: Final = 10_000
# a place comes free within milliseconds, or when a long stream ends; `queue.max_wait` ends it at 30 s by default
_QUEUE_BUCKETS_S: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_POSITION_BUCKETS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _gauge(name: str, documentation: str, registry: CollectorRegistry) -> dict[str, float]:
    return PlainGauge(name, documentation, "upstream", registry).values


class RoutingMetrics:
    """What Sluice counts of its upstreams. `upstream` is always the name of a configured one.

    `in_flight` is the gauge of what each serves: whoever counts that writes it there.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        name = ("upstream",)
        tries = "Tries at upstreams."
        self._attempts = PlainCounter(
            "sluice_upstream_attempts_total", tries, ("upstream", "result"), registry, max_label_sets=_MAX_LABEL_SETS
        )
        followed = "Tries that were followed by another."
        self._retries = PlainCounter(
            "sluice_retries_total", followed, ("upstream", "reason"), registry, max_label_sets=_MAX_LABEL_SETS
        )
        self.in_flight = _gauge("sluice_upstream_in_flight", "Exchanges that an upstream serves.", registry)
        circuit = "An upstream's circuit: 0 closed, 1 half-open, 2 open."
        self._circuit = _gauge("sluice_upstream_circuit", circuit, registry)
        self._waiting = _gauge("sluice_queue_waiting", "Exchanges that wait for an upstream.", registry)
        waits = "How long exchanges waited for an upstream at its limit."
        self._queue_s = PlainHistogram(
            "sluice_queue_seconds", waits, name, registry, max_label_sets=_MAX_LABEL_SETS, bounds=_QUEUE_BUCKETS_S
        )
        ahead = "How many were ahead of an exchange that began to wait."
        self._position = PlainHistogram(
            "sluice_queue_position", ahead, name, registry, max_label_sets=_MAX_LABEL_SETS, bounds=_POSITION_BUCKETS
        )

    def attempted(self, upstream: str, result: str) -> None:
        """Count one try at an upstream, by what came of it."""
        self._attempts.add((upstream, result))

    def retried(self, upstream: str, reason: str) -> None:
        """Count a try at an upstream that another one follows, there or elsewhere."""
        self._retries.add((upstream, reason))

    def stands(self, upstream: str, in_flight: int, circuit: int) -> None:
        """Show what an upstream serves, and its circuit's state: 0 closed, 1 half-open, 2 open."""
        self.in_flight[upstream] = in_flight
        self._circuit[upstream] = circuit

    def forget(self, upstreams: Iterable[str]) -> None:
        """Show no more where these stand: they are gone from the configuration."""
        for gauge in (self.in_flight, self._circuit, self._waiting):
            for name in upstreams:
                gauge.pop(name, None)

    def waiting(self, upstream: str, count: int) -> None:
        """Show how many wait for an upstream; one that may go to several waits for each."""
        self._waiting[upstream] = count

    def queued(self, upstream: str, position: int) -> None:
        """Note how many were ahead of an exchange that began to wait."""
        self._position.observe((upstream,), position)

    def waited(self, upstream: str, seconds: float) -> None:
        """Note how long an exchange waited, for the upstream that took it, or the first of those it wanted."""
        self._queue_s.observe((upstream,), seconds)
