"""Where limits stood at a moment is what it was then, whatever happens afterwards."""

from __future__ import annotations

from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits, Standing
from proxy.core.quota_stands import NOTHING, Stands, laid_out
from proxy.core.quota_state import KeyState, reserve, settle
from proxy.core.quota_windows import Counter, bucket_at
from tests.fakes.quotas import START_MS

REQUESTS = Limit(Kind.REQUESTS, 5, 60)
TOKENS = Limit(Kind.TOKENS, 100, 60)
SPEND = Limit(Kind.SPEND, 900, Calendar.DAY)
LIMITS = Limits((REQUESTS, TOKENS, SPEND))
LEFT_S = 29.877  # of the minute, and of the day


def test_each_window_stands_as_its_counter_with_what_was_charged_of_its_kind() -> None:
    minute, day = bucket_at(60, START_MS), bucket_at(Calendar.DAY, START_MS)
    counters = [Counter(60, minute), Counter(60, minute, 20, 1000), Counter(Calendar.DAY, day, 900)]
    assert Stands(laid_out(LIMITS, counters), (2, 30, 40), START_MS).standings() == (
        Standing(REQUESTS, 2, 3, LEFT_S + 60),
        Standing(TOKENS, 20 + 498 + 30, 0, LEFT_S + 60),
        Standing(SPEND, 940, 0, LEFT_S),
    )
    assert [standing.used for standing in Stands(laid_out(LIMITS, counters), NOTHING, START_MS).standings()] == [
        0,
        518,
        900,
    ]
    assert Stands().standings() == ()


def test_what_a_grant_says_does_not_change_with_what_comes_after() -> None:
    state = KeyState()
    granted = []
    for number in range(3):
        answer = reserve(state, f"exc_{number}", "team-a", LIMITS, Demand(1, 10, 100), START_MS)
        assert isinstance(answer, Granted)
        granted.append(answer)
    settle(state, granted[0].reservation, Demand(1, 99, 9))  # beyond what there is room for
    assert isinstance(reserve(state, "exc_3", "team-a", LIMITS, Demand(), START_MS + 120_000), Granted)
    stood = [tuple(standing.used for standing in answer.stands.standings()) for answer in granted]
    assert stood == [(1, 10, 100), (2, 20, 200), (3, 30, 300)]
