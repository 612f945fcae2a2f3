"""The gauges of quotas tell what counts when they are read, not what counted when a key was last seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from proxy.core.quota import Calendar, Demand, Kind, Limit, Standing
from proxy.telemetry import quotas as module
from proxy.telemetry.quotas import FORGET_S, QuotaMetrics

if TYPE_CHECKING:
    import pytest

SLIDING = Limit(Kind.TOKENS, 1000, 60)
MONTHLY = Limit(Kind.SPEND, 5_000_000, Calendar.MONTH)


class Shown:
    """What a scrape would show, at a time that is set."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.registry = CollectorRegistry()
        self.metrics = QuotaMetrics(self.registry, lambda: self.now_s)

    def used(self, window: str, kind: str = "tokens", key: str = "a") -> float | None:
        labels = {"key": key, "kind": kind, "window": window}
        limit = self.registry.get_sample_value("sluice_quota_limit", labels)
        used = self.registry.get_sample_value("sluice_quota_used", labels)
        assert (limit is None) == (used is None)
        return used


def test_what_was_used_of_a_sliding_window_runs_out_and_of_a_month_ends_with_it() -> None:
    shown = Shown()
    shown.metrics.admitted("a", [Standing(SLIDING, 600, 400, 60.0), Standing(MONTHLY, 900, 4_999_100, 7200.0)])
    assert (shown.used("minute"), shown.used("month", "spend")) == (600, 900)
    shown.now_s += 30
    assert (shown.used("minute"), shown.used("month", "spend")) == (300, 900)
    shown.now_s += 30
    assert (shown.used("minute"), shown.used("month", "spend")) == (0, 900)
    shown.now_s += 7139.9
    assert (shown.used("minute"), shown.used("month", "spend")) == (None, 900), "unseen for long, and over"
    shown.now_s += 1
    assert shown.used("month", "spend") is None


def test_a_settlement_replaces_what_was_reserved() -> None:
    shown = Shown()
    standings = [Standing(SLIDING, 600, 400, 60.0), Standing(MONTHLY, 900, 1, 7200.0)]
    shown.metrics.admitted("a", standings)
    shown.metrics.settled("a", standings, Demand(1, 500, 800), Demand(1, 20, 3))
    assert (shown.used("minute"), shown.used("month", "spend")) == (120, 103)
    shown.metrics.settled("b", standings, Demand(1, 500, 800), Demand())
    assert shown.used("minute", key="b") is None, "never admitted here"


def test_keys_not_seen_for_long_are_not_shown_and_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_STANDS", 2)
    shown = Shown()
    for key in ("a", "b", "a", "c"):
        shown.metrics.admitted(key, [Standing(SLIDING, 1, 999, 60.0)])
    assert [shown.used("minute", key=key) for key in ("a", "b", "c")] == [1, None, 1]
    shown.now_s += FORGET_S
    assert [shown.used("minute", key=key) for key in ("a", "b", "c")] == [None, None, None]
