"""The pauses between the events of streams, taken over from each stream at its end."""

from __future__ import annotations

from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.core.gaps import BOUNDS_S, Gaps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

_MAX_LABEL_SETS: Final = 1_000
_LABELS: Final = ("model", "upstream")


class InterEvents(Collector):
    """`sluice_inter_event_seconds`."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str], Gaps] = {}
        self._labelnames = _LABELS

    def add(self, model: str, upstream: str, gaps: Gaps) -> None:
        """Take over the pauses of a stream that has ended."""
        labels = model, upstream
        if labels not in self._all and len(self._all) >= _MAX_LABEL_SETS:
            labels = "other", "other"
        found = self._all.get(labels) or self._all.setdefault(labels, Gaps())
        found.counts = list(map(add, found.counts, gaps.counts))
        found.total_s += gaps.total_s

    def collect(self) -> Iterable[Metric]:
        """The one histogram."""
        name, documentation = "sluice_inter_event_seconds", "Pauses between the events of a stream."
        family = HistogramMetricFamily(name, documentation, labels=_LABELS)
        bounds = [*map(floatToGoString, BOUNDS_S), "+Inf"]
        for labels, gaps in list(self._all.items()):
            family.add_metric(labels, list(zip(bounds, accumulate(gaps.counts), strict=True)), gaps.total_s)
        return (family,)
