"""The label sets of a metric, found quickly, and no more of them than a process can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase

OVERFLOW: Final = "other"

_M = TypeVar("_M", bound="MetricWrapperBase")


class Children(Generic[_M]):
    """The children of one metric by their label values: `labels()` costs five times what a cached child does."""

    def __init__(self, metric: _M, max_label_sets: int) -> None:
        self._metric = metric
        self._max_label_sets = max_label_sets
        self._children: dict[tuple[str, ...], _M] = {}

    def __call__(self, *values: str) -> _M:
        """The child with these label values, or that of `other` once there are too many."""
        child = self._children.get(values)
        return child if child is not None else self._add(values)

    def _add(self, values: tuple[str, ...]) -> _M:
        if len(self._children) >= self._max_label_sets:
            return self._metric.labels(*[OVERFLOW] * len(values))
        child = self._children[values] = self._metric.labels(*values)
        return child
