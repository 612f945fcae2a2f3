"""Metrics that are dictionaries until somebody reads them: counting on prometheus_client's own takes 1 to 3 us.

What is shown is what prometheus_client's `Counter`, `Gauge` and `Histogram` would show. They are changed in the event
loop's thread alone, and may be read in any.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final

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


class PlainCounter(Collector):
    """A counter of at most `max_label_sets`; past them a new one counts under `OVERFLOW`."""

    def __init__(
        self, name: str, documentation: str, labels: Labels, registry: CollectorRegistry, *, max_label_sets: int
    ) -> None:
        self._values: dict[Labels, float] = {}
        self._labelnames = labels
        self._told = name, documentation
        self._max_label_sets = max_label_sets
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count `amount`, which is not negative."""
        values = self._values
        if labels in values:
            values[labels] += amount
        else:
            labels = _bounded(labels, values, self._max_label_sets)
            values[labels] = values.get(labels, 0) + amount

    def collect(self) -> Iterable[Metric]:
        """The one metric."""
        family = CounterMetricFamily(*self._told, labels=self._labelnames)
        for labels, value in self._values.copy().items():
            family.add_metric(labels, value)
        return (family,)


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
        self._series: dict[Labels, list[float]] = {}  # the counts of the buckets, and the sum
        self._exemplars: dict[Labels, dict[int, Exemplar]] = {}  # the last one of each bucket
        self._labelnames = labels
        self._told = name, documentation
        self._max_label_sets = max_label_sets
        self._bounds = bounds
        self._clock = clock
        registry.register(self)

    def observe(self, labels: Labels, amount: float, trace_id: str | None = None) -> None:
        """Note `amount` in its bucket; `trace_id` goes with it as the bucket's exemplar."""
        series = self._series.get(labels)
        if series is None:
            series = self._begin(labels)
        bucket = bisect_left(self._bounds, amount)
        # no call between the two: the interpreter changes threads at calls, and who reads sees both or neither
        series[bucket] += 1
        series[-1] += amount
        if trace_id is not None:
            labels = labels if labels in self._series else (OVERFLOW,) * len(labels)
            exemplars = self._exemplars.setdefault(labels, {})
            exemplars[bucket] = Exemplar({"trace_id": trace_id}, amount, self._clock())

    def _begin(self, labels: Labels) -> list[float]:
        labels = _bounded(labels, self._series, self._max_label_sets)
        return self._series.setdefault(labels, [0] * (len(self._bounds) + 2))

    def collect(self) -> Iterable[Metric]:
        """The one metric."""
        family = HistogramMetricFamily(*self._told, labels=self._labelnames)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, series in self._series.copy().items():
            *counts, total = series.copy()
            exemplars = self._exemplars.get(labels, {}).copy()
            pairs = enumerate(zip(names, accumulate(counts), strict=True))
            buckets = [(*pair, exemplars[bucket]) if bucket in exemplars else pair for bucket, pair in pairs]
            family.add_metric(labels, buckets, total)
        return (family,)


def _bounded(labels: Labels, known: dict[Labels, float] | dict[Labels, list[float]], most: int) -> Labels:
    """What a new label set counts under."""
    return labels if len(known) < most else (OVERFLOW,) * len(labels)
