"""The metrics of quotas: what was refused, where limits stand, and how the store does.

Where a limit stands is known when an exchange is admitted and when it is settled; in between and after, what was used
runs out with its window. So the gauges are worked out when they are read, from what was known last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy.core.quota import Calendar, amount_of
from proxy.core.ratelimit import window_name
from proxy.telemetry.label_sets import Children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from proxy.core.quota import Demand, Limit, Standing

MAX_STANDS: Final = 10_000
"""Limits of keys that are shown: those seen last."""
FORGET_S: Final = 3600.0
"""A key that was not seen for so long is not shown any more, once its windows are over."""
_MAX_LABEL_SETS: Final = 10_000
_WINDOW: Final = ("key", "kind", "window")
# dictionaries take 10 us, a Redis on the same network 0.5 ms; 250 ms is where waiting ends
_STORE_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class QuotaMetrics:
    """What Sluice counts of quotas. `clock` is monotonic, in seconds."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        refusals = Counter(
            "sluice_quota_rejections_total", "Requests that a quota did not allow.", _WINDOW, registry=registry
        )
        unchecked = Counter(
            "sluice_quota_unchecked_total",
            "Exchanges let pass while the store did not answer.",
            ("key",),
            registry=registry,
        )
        errors = Counter(
            "sluice_store_errors_total", "Operations of the quota store that failed.", ("operation",), registry=registry
        )
        seconds = Histogram(
            "sluice_store_seconds",
            "An operation of the quota store.",
            ("operation",),
            registry=registry,
            buckets=_STORE_BUCKETS_S,
        )
        self._refusals = Children(refusals, _MAX_LABEL_SETS)
        self._unchecked = Children(unchecked, _MAX_LABEL_SETS)
        self._store_errors = Children(errors, _MAX_LABEL_SETS)
        self._store_seconds = Children(seconds, _MAX_LABEL_SETS)
        self._stands = _Stands(clock)
        registry.register(self._stands)

    def refused(self, key: str, limit: Limit | None) -> None:
        """Count a request that the quota of its key did not allow; None: for too many at once."""
        kind, window = ("concurrency", "") if limit is None else (limit.kind.value, window_name(limit))
        self._refusals(key, kind, window).inc()

    def unchecked(self, key: str) -> None:
        """Count an exchange that passed without limits, because the store did not answer."""
        self._unchecked(key).inc()

    def admitted(self, key: str, standings: Iterable[Standing]) -> None:
        """Show where the limits of a key stand, its newest reservation included."""
        self._stands.admitted(key, standings)

    def settled(self, key: str, standings: Iterable[Standing], reserved: Demand, used: Demand) -> None:
        """Show what was used in place of what was reserved, in the windows that `standings` are of."""
        self._stands.settled(key, standings, reserved, used)

    def store_asked(self, operation: str, seconds: float, error: str | None) -> None:
        """Note what one operation of the quota store took, and whether it failed."""
        self._store_seconds(operation).observe(seconds)
        if error is not None:
            self._store_errors(operation).inc()


class _Stand:
    """Where one limit of a key stood at a moment."""

    __slots__ = ("limit", "seen_s", "until_s", "used")

    def __init__(self, standing: Standing, now_s: float) -> None:
        self.limit = standing.limit
        self.used = standing.used
        self.seen_s = now_s
        self.until_s = now_s + standing.reset_s

    def used_at(self, now_s: float) -> float:
        """What still counts: all of it until a calendar window ends; of a sliding one less and less."""
        if now_s >= self.until_s:
            return 0.0
        if isinstance(self.limit.window, Calendar):
            return float(self.used)
        return self.used * (self.until_s - now_s) / (self.until_s - self.seen_s)


class _Stands(Collector):
    """The limits of keys seen lately, in the order in which they were seen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stands: dict[tuple[str, str, str], _Stand] = {}
        self._labelnames = _WINDOW

    def admitted(self, key: str, standings: Iterable[Standing]) -> None:
        now_s = self._clock()
        for standing in standings:
            labels = key, standing.limit.kind.value, window_name(standing.limit)
            self._stands.pop(labels, None)
            self._stands[labels] = _Stand(standing, now_s)
        while len(self._stands) > MAX_STANDS:
            del self._stands[next(iter(self._stands))]

    def settled(self, key: str, standings: Iterable[Standing], reserved: Demand, used: Demand) -> None:
        for standing in standings:
            limit = standing.limit
            stand = self._stands.get((key, limit.kind.value, window_name(limit)))
            if stand is not None and stand.used:
                change = amount_of(used, limit.kind) - amount_of(reserved, limit.kind)
                stand.used = max(0, stand.used + change)

    def collect(self) -> Iterable[Metric]:
        """Both gauges; what has not been seen for long is forgotten."""
        now_s = self._clock()
        amounts = GaugeMetricFamily("sluice_quota_limit", "Requests, tokens or micro-USD of a window.", labels=_WINDOW)
        useds = GaugeMetricFamily("sluice_quota_used", "How much of it is used or reserved.", labels=_WINDOW)
        for labels, stand in list(self._stands.items()):
            if now_s >= max(stand.until_s, stand.seen_s + FORGET_S):
                self._stands.pop(labels, None)
                continue
            amounts.add_metric(labels, stand.limit.amount)
            useds.add_metric(labels, stand.used_at(now_s))
        return amounts, useds
