"""The gauges of quotas tell what counts when they are read, not what counted when a key was last seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from proxy.core.quota import Calendar, Demand, Kind, Limit, Standing, amount_of
from proxy.core.ratelimit import window_name
from proxy.telemetry import quotas as module
from proxy.telemetry.quotas import FORGET_S, QuotaMetrics
from tests.fakes.quota_stands import told

if TYPE_CHECKING:
    from proxy.core.quota_stands import Stands

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
    shown.metrics.admitted("a", told(Standing(SLIDING, 600, 400, 60.0), Standing(MONTHLY, 900, 4_999_100, 7200.0)))
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
    stands = told(Standing(SLIDING, 600, 400, 60.0), Standing(MONTHLY, 900, 1, 7200.0))
    shown.metrics.admitted("a", stands)
    shown.metrics.settled("a", stands, Demand(1, 500, 800), Demand(1, 20, 3))
    assert (shown.used("minute"), shown.used("month", "spend")) == (120, 103)
    shown.metrics.settled("b", stands, Demand(1, 500, 800), Demand())
    assert shown.used("minute", key="b") is None, "never admitted here"


def test_keys_not_seen_for_long_are_not_shown_and_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_STANDS", 2)
    shown = Shown()
    for key in ("a", "b", "a", "c"):
        shown.metrics.admitted(key, told(Standing(SLIDING, 1, 999, 60.0)))
    assert [shown.used("minute", key=key) for key in ("a", "b", "c")] == [1, None, 1]
    shown.now_s += FORGET_S
    assert [shown.used("minute", key=key) for key in ("a", "b", "c")] == [None, None, None]


class Reference:
    """Each limit of each key by itself: what is shown, without the ways that make it cheap."""

    def __init__(self) -> None:
        self.stands: dict[tuple[str, str, str], tuple[Standing, float, int]] = {}

    def admitted(self, key: str, stands: Stands, now_s: float) -> None:
        for one in stands.standings():
            self.stands[key, one.limit.kind.value, window_name(one.limit)] = one, now_s, one.used

    def settled(self, key: str, stands: Stands, reserved: Demand, used: Demand) -> None:
        for one in stands.standings():
            labels = key, one.limit.kind.value, window_name(one.limit)
            if labels in self.stands:
                stand, seen_s, before = self.stands[labels]
                change = amount_of(used, one.limit.kind) - amount_of(reserved, one.limit.kind)
                self.stands[labels] = stand, seen_s, max(0, before + change) if before else 0

    def shown(self, now_s: float) -> dict[tuple[str, str, str], tuple[int, float]]:
        found = {}
        for labels, (stand, seen_s, used) in self.stands.items():
            passed_s = now_s - seen_s
            if passed_s < max(stand.reset_s, FORGET_S):
                left = 1.0 if isinstance(stand.limit.window, Calendar) else 1 - passed_s / stand.reset_s
                found[labels] = stand.limit.amount, used * left if passed_s < stand.reset_s else 0.0
        return found


# what the requests of a key may be held to: of all models, of some besides, of others alone, and after a reload
NARROWED = SLIDING._replace(model="gpt-4*")
LIMITS = st.sampled_from([(SLIDING, MONTHLY), (SLIDING, MONTHLY, NARROWED), (NARROWED,), (SLIDING._replace(amount=5),)])
keys = st.sampled_from("ab")
demands = st.builds(Demand, st.just(1), st.integers(0, 50), st.integers(0, 50))


class Machine(RuleBasedStateMachine):
    """Exchanges are admitted and settled in any order, with any limits, and looked at in between."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = Shown()
        self.reference = Reference()
        self.under_way: list[tuple[str, Stands, Demand]] = []

    @rule(key=keys, limits=LIMITS, reserved=demands, used=st.integers(0, 200), reset_s=st.sampled_from([30.0, 9000.0]))
    def admit(self, key: str, limits: tuple[Limit, ...], reserved: Demand, used: int, reset_s: float) -> None:
        stands = told(*(Standing(limit, used, 0, reset_s) for limit in limits))
        self.shown.metrics.admitted(key, stands)
        self.reference.admitted(key, stands, self.shown.now_s)
        self.under_way.append((key, stands, reserved))

    @rule(data=st.data(), used=demands)
    def settle(self, data: st.DataObject, used: Demand) -> None:
        if self.under_way:
            ended = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
            self.shown.metrics.settled(*ended, used)
            self.reference.settled(*ended, used)

    @rule(seconds=st.sampled_from([1.0, 29.0, FORGET_S]))
    def wait(self, seconds: float) -> None:
        self.shown.now_s += seconds

    @invariant()
    def shows_what_the_reference_does(self) -> None:
        found = {
            family.name: {(s.labels["key"], s.labels["kind"], s.labels["window"]): s.value for s in family.samples}
            for family in self.shown.registry.collect()
        }
        expected = self.reference.shown(self.shown.now_s)
        assert found["sluice_quota_limit"] == {labels: amount for labels, (amount, _) in expected.items()}
        assert found["sluice_quota_used"] == pytest.approx({labels: used for labels, (_, used) in expected.items()})


TestStands = Machine.TestCase
TestStands.settings = settings(max_examples=150, stateful_step_count=30)


def test_what_is_noted_of_a_key_does_not_grow() -> None:
    shown = Shown()
    of_all = Standing(SLIDING, 600, 400, 60.0)
    stands, narrowed = told(of_all), told(of_all, Standing(NARROWED, 1, 9, 60.0))
    for _ in range(50):
        for ours in (stands, narrowed, stands):
            shown.metrics.admitted("a", ours)
            shown.metrics.settled("a", ours, Demand(1, 5, 5), Demand(1, 1, 1))
    (noted,) = shown.metrics._stands._keys.values()
    assert [len(list(seen.shown(shown.now_s))) for seen in noted] == [1, 1]
    assert sum(len(seen.settled) for seen in noted) <= 3
