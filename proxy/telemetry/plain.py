"""Metrics that are dictionaries until somebody reads them: counting on prometheus_client's own takes 1 to 3 us.

What is shown is what prometheus_client's `Counter`, `Gauge` and `Histogram` would show. They are changed in the event
loop's thread alone, and may be read in any.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

OVERFLOW: Final = "other"
"""The label value under which everything counts that is past a metric's cap of label sets."""

Labels = tuple[str, ...]

_T = TypeVar("_T")


class PlainGauge(Collector):
    """A gauge with one label, whose values come from an enumeration or the configuration: `values` by label value.

    Where somebody knows them anyway, `read` is set to what asks him.
    """

    def __init__(self, name: str, documentation: str, label: str, registry: CollectorRegistry) -> None:
        self.values: dict[str, float] = {}
        self.read: Callable[[], dict[str, float]] = self.values.copy
        self._labelnames = (label,)
        self._told = name, documentation
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The one metric."""
        family = GaugeMetricFamily(*self._told, labels=self._labelnames)
        for value, amount in self.read().items():
            family.add_metric((value,), amount)
        return (family,)


class Tally:
    """The value of a counter under one label set. It is shown once it has counted something, or `is_shown`."""

    __slots__ = ("is_shown", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.is_shown = False


class PlainCounter(Collector):
    """A counter of at most `max_label_sets`; past them a new one counts under `OVERFLOW`."""

    def __init__(
        self, name: str, documentation: str, labels: Labels, registry: CollectorRegistry, *, max_label_sets: int
    ) -> None:
        self._tallies: dict[Labels, Tally] = {}
        self._labelnames = labels
        self._told = name, documentation
        self._max_label_sets = max_label_sets
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count `amount`, which is not negative; from now on it is shown, even 0."""
        tally = self._tallies.get(labels) or self.tally(labels)
        tally.value += amount
        tally.is_shown = True

    def tally(self, labels: Labels) -> Tally:
        """What counts under these labels; it may be kept, and be added to."""
        return _found(labels, self._tallies, self._max_label_sets, Tally)

    def collect(self) -> Iterable[Metric]:
        """The one metric."""
        family = CounterMetricFamily(*self._told, labels=self._labelnames)
        for labels, tally in self._tallies.copy().items():
            if tally.value or tally.is_shown:
                family.add_metric(labels, tally.value)
        return (family,)


class Series:
    """What a histogram has observed under one label set."""

    __slots__ = ("_bounds", "_clock", "exemplars", "numbers")

    def __init__(self, bounds: tuple[float, ...], clock: Callable[[], float]) -> None:
        self._bounds = bounds
        self._clock = clock
        self.numbers: list[float] = [0] * (len(bounds) + 2)  # the counts of the buckets, and the sum
        self.exemplars: dict[int, Exemplar] = {}  # the last one of each bucket

    def observe(self, amount: float, trace_id: str | None = None) -> None:
        """Note `amount` in its bucket; `trace_id` goes with it as the bucket's exemplar."""
        bucket = bisect_left(self._bounds, amount)
        numbers = self.numbers
        # no call between the two: the interpreter changes threads at calls, and who reads sees both or neither
        numbers[bucket] += 1
        numbers[-1] += amount
        if trace_id is not None:
            self.exemplars[bucket] = Exemplar({"trace_id": trace_id}, amount, self._clock())


class PlainHistogram(Collector):
    """A histogram with the upper `bounds`, rising and not negative, of at most `max_label_sets`, as `PlainCounter`.

    `clock` is UNIX time in seconds, for exemplars.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Labels,
        registry: CollectorRegistry,
        *,
        max_label_sets: int,
        bounds: tuple[float, ...],
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the clock that is passed in; exemplars have wall time
    ) -> None:
        self._all: dict[Labels, Series] = {}
        self._labelnames = labels
        self._told = name, documentation
        self._max_label_sets = max_label_sets
        self._bounds = bounds
        self._begin = partial(Series, bounds, clock)
        registry.register(self)

    def observe(self, labels: Labels, amount: float) -> None:
        """Note `amount` in its bucket."""
        (self._all.get(labels) or self.series(labels)).observe(amount)

    def series(self, labels: Labels) -> Series:
        """What observes under these labels; it may be kept. It is shown once it has observed something."""
        return _found(labels, self._all, self._max_label_sets, self._begin)

    def collect(self) -> Iterable[Metric]:
        """The one metric."""
        family = HistogramMetricFamily(*self._told, labels=self._labelnames)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, series in self._all.copy().items():
            *counts, total = series.numbers.copy()
            exemplars = series.exemplars.copy()
            pairs = enumerate(zip(names, accumulate(counts), strict=True))
            buckets = [(*pair, exemplars[bucket]) if bucket in exemplars else pair for bucket, pair in pairs]
            if any(counts):
                family.add_metric(labels, buckets, total)
        return (family,)


def _found(labels: Labels, known: dict[Labels, _T], most: int, begin: Callable[[], _T]) -> _T:
    """What stands under these labels, or is begun under them, or under `OVERFLOW` past the cap."""
    if labels not in known and len(known) >= most:
        labels = (OVERFLOW,) * len(labels)
    found = known.get(labels)
    if found is None:
        found = known[labels] = begin()
    return found
