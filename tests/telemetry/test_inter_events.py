"""Pauses of streams add up in one histogram for each model and upstream, of which there are not too many."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from proxy.core.gaps import Gaps
from proxy.telemetry import inter_events as module
from proxy.telemetry.inter_events import InterEvents


def paused(*times_s: float) -> Gaps:
    gaps = Gaps()
    for time_s in times_s:
        gaps.saw(time_s)
    return gaps


def test_streams_add_up_and_label_sets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LABEL_SETS", 1)
    registry, events = CollectorRegistry(), InterEvents()
    registry.register(events)
    events.add("m", "up", paused(1.0, 1.015, 4.0))
    events.add("m", "up", paused(1.0, 1.03))
    events.add("n", "up", paused(1.0, 2.0))
    name, labels = "sluice_inter_event_seconds", {"model": "m", "upstream": "up"}

    def within(bound: str) -> float | None:
        return registry.get_sample_value(f"{name}_bucket", {**labels, "le": bound})

    assert (within("0.01"), within("0.02"), within("0.05"), within("5.0"), within("+Inf")) == (0, 1, 2, 3, 3)
    assert registry.get_sample_value(f"{name}_count", labels) == 3
    assert registry.get_sample_value(f"{name}_sum", labels) == pytest.approx(3.03)
    assert registry.get_sample_value(f"{name}_count", {"model": "other", "upstream": "other"}) == 1
