"""A gauge that is a dictionary until somebody reads it: setting a child of prometheus_client's takes a microsecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class PlainGauge(Collector):
    """A gauge with one label, whose values come from an enumeration or the configuration: `values` by label value."""

    def __init__(self, name: str, documentation: str, label: str, registry: CollectorRegistry) -> None:
        self.values: dict[str, float] = {}
        self._labelnames = (label,)
        self._told = name, documentation
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The one metric."""
        family = GaugeMetricFamily(*self._told, labels=self._labelnames)
        for value, amount in list(self.values.items()):
            family.add_metric((value,), amount)
        return (family,)
