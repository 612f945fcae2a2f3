"""The metrics of quotas: what was refused, where limits stand, and how the store does.

Where a limit stands is known when an exchange is admitted and when it is settled; in between and after, what was used
runs out with its window. So the gauges are worked out when they are read, from what was known last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy.core.quota import Calendar, amount_of
from proxy.core.ratelimit import window_name
from proxy.telemetry.plain import PlainCounter, PlainHistogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from proxy.core.quota import Demand, Limit, Standing
    from proxy.core.quota_stands import Stands

MAX_STANDS: Final = 10_000
"""Limits of keys that are shown: those seen last."""
FORGET_S: Final = 3600.0
"""A key that was not seen for so long is not shown any more, once its windows are over."""
_MAX_LABEL_SETS: Final = 10_000
_Name = tuple[str, str]  # of a limit within a key: its kind, and its window in words
_WINDOW: Final = ("key", "kind", "window")
# dictionaries take 10 us, a Redis on the same network 0.5 ms; 250 ms is where waiting ends
_STORE_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class QuotaMetrics:
    """What Sluice counts of quotas. `clock` is monotonic, in seconds."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        refusals = "Requests that a quota did not allow."
        self._refusals = PlainCounter(
            "sluice_quota_rejections_total", refusals, _WINDOW, registry, max_label_sets=_MAX_LABEL_SETS
        )
        unchecked = "Exchanges let pass while the store did not answer."
        self._unchecked = PlainCounter(
            "sluice_quota_unchecked_total", unchecked, ("key",), registry, max_label_sets=_MAX_LABEL_SETS
        )
        operation = ("operation",)
        failed = "Operations of the quota store that failed."
        self._store_errors = PlainCounter(
            "sluice_store_errors_total", failed, operation, registry, max_label_sets=_MAX_LABEL_SETS
        )
        took = "An operation of the quota store."
        self._store_seconds = PlainHistogram(
            "sluice_store_seconds", took, operation, registry, max_label_sets=_MAX_LABEL_SETS, bounds=_STORE_BUCKETS_S
        )
        self._stands = _Stands(clock)
        self.admitted = self._stands.admitted
        self.settled = self._stands.settled
        registry.register(self._stands)

    def refused(self, key: str, limit: Limit | None) -> None:
        """Count a request that the quota of its key did not allow; None: for too many at once."""
        kind, window = ("concurrency", "") if limit is None else (limit.kind.value, window_name(limit))
        self._refusals.add((key, kind, window))

    def unchecked(self, key: str) -> None:
        """Count an exchange that passed without limits, because the store did not answer."""
        self._unchecked.add((key,))

    def store_asked(self, operation: str, seconds: float, error: str | None) -> None:
        """Note what one operation of the quota store took, and whether it failed."""
        self._store_seconds.observe((operation,), seconds)
        if error is not None:
            self._store_errors.add((operation,))


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """Limits of a key as an admission left them, at `seen_s`, and what was settled since: by whom, reserved, and used.

    `hidden` are those that a newer admission tells of. Nothing grows without bound: who settles was admitted before,
    and each admission makes this anew.
    """

    stands: Stands
    seen_s: float
    settled: list[tuple[Stands, Demand, Demand]]
    hidden: frozenset[_Name] = frozenset()

    def shown(self, now_s: float) -> Iterable[tuple[_Name, int, float]]:
        """Name, amount and what counts of each limit, the last one first; those over and not seen for long are not."""
        for standing in reversed(self.stands.standings()):
            name = _name(standing.limit)
            if name not in self.hidden and now_s < self.seen_s + max(standing.reset_s, FORGET_S):
                yield name, standing.limit.amount, self._used(standing, now_s)

    def _used(self, standing: Standing, now_s: float) -> float:
        """What still counts: all of it until a calendar window ends; of a sliding one less and less."""
        used, limit, left_s = standing.used, standing.limit, self.seen_s + standing.reset_s - now_s
        for stands, reserved, charged in self.settled.copy():
            if used and _name(limit) in _names(stands):
                used = max(0, used + amount_of(charged, limit.kind) - amount_of(reserved, limit.kind))
        if left_s <= 0:
            return 0.0
        return float(used) if isinstance(limit.window, Calendar) else used * left_s / standing.reset_s


def _name(limit: Limit) -> _Name:
    return limit.kind.value, window_name(limit)


def _names(stands: Stands) -> set[_Name]:
    return set(map(_name, stands.laid.limits.windows))


class _Stands(Collector):
    """The limits of keys seen lately, in the order in which the keys were seen.

    An admission is noted as it is, and what it means is worked out by who asks. Limits of one key that are seen apart
    (some are narrowed to models) are noted apart, the newest first, each name once.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keys: dict[str, tuple[_Seen, ...]] = {}
        self._labelnames = _WINDOW

    def admitted(self, key: str, stands: Stands) -> None:
        """Show where the limits of a key stand, its newest reservation included."""
        limits = stands.laid.limits
        if not limits.windows:
            return
        seen = _Seen(stands, self._clock(), [])
        keys = self._keys
        before = keys.pop(key, None)
        if before is None or (len(before) == 1 and before[0].stands.laid.limits is limits):
            keys[key] = (seen,)
        else:
            keys[key] = (seen, *_besides(seen, before))
        if len(keys) > MAX_STANDS:
            del keys[next(iter(keys))]

    def settled(self, key: str, stands: Stands, reserved: Demand, used: Demand) -> None:
        """Show what was used in place of what was reserved, in the windows that `stands` are of."""
        noted = self._keys.get(key, ())
        if len(noted) == 1:
            noted[0].settled.append((stands, reserved, used))
            return
        for seen in noted:
            if not _names(stands).isdisjoint(_names(seen.stands) - seen.hidden):
                seen.settled.append((stands, reserved, used))

    def collect(self) -> Iterable[Metric]:
        """Both gauges; a key of which nothing is shown any more is forgotten."""
        now_s = self._clock()
        shown: list[tuple[tuple[str, str, str], int, float]] = []
        for key, noted in reversed(self._keys.copy().items()):
            before = len(shown)
            shown += [((key, *name), amount, used) for seen in noted for name, amount, used in seen.shown(now_s)]
            if len(shown) == before:
                self._keys.pop(key, None)
        amounts = GaugeMetricFamily("sluice_quota_limit", "Requests, tokens or micro-USD of a window.", labels=_WINDOW)
        useds = GaugeMetricFamily("sluice_quota_used", "How much of it is used or reserved.", labels=_WINDOW)
        for labels, amount, used in reversed(shown[:MAX_STANDS]):
            amounts.add_metric(labels, amount)
            useds.add_metric(labels, used)
        return amounts, useds


def _besides(seen: _Seen, before: tuple[_Seen, ...]) -> Iterable[_Seen]:
    """What was noted before of limits that `seen` does not tell of, without what is over."""
    names = _names(seen.stands)
    for older in before:
        left = _Seen(older.stands, older.seen_s, older.settled, older.hidden | names)
        if any(left.shown(seen.seen_s)):
            yield left
