"""How many retries the budget grants, at every moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.retry_budget import RESERVE, WINDOW_S, RetryBudget


def granted(budget: RetryBudget, now_s: float, wanted: int = 1000) -> int:
    count = 0
    while count < wanted and budget.may_spend(now_s):
        budget.spend(now_s)
        count += 1
    return count


def test_a_quiet_service_has_the_reserve() -> None:
    budget = RetryBudget(0.2)
    assert granted(budget, 100.0) == RESERVE
    assert granted(budget, 100.0 + WINDOW_S) == 0, "the retries of the last window still count, or some would be free"
    assert granted(budget, 101.0 + WINDOW_S) == RESERVE


def test_requests_add_their_share_for_as_long_as_the_window() -> None:
    budget = RetryBudget(0.2)
    for number in range(100):
        budget.request(50.0 + number / 100)
    assert granted(budget, 55.0) == 20 + RESERVE
    assert granted(budget, 70.0) == RESERVE


def test_a_request_is_good_for_no_longer_than_the_window() -> None:
    budget = RetryBudget(0.2)
    for number in range(100):
        budget.request(50.0 + number / 100)
    assert granted(budget, 50.995 + WINDOW_S) == RESERVE


def test_without_a_share_there_are_no_retries() -> None:
    budget = RetryBudget(0.0)
    for _ in range(1000):
        budget.request(1.0)
    assert not budget.may_spend(1.0)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_steady_stream_of_failures_is_granted_nearly_all_of_its_share(share: float) -> None:
    """Being sure costs little: the window of requests is up to a tenth shorter than that of retries."""
    budget, spent = RetryBudget(share), 0
    for number in range(60_000):
        now_s = number / 1000
        budget.request(now_s)
        spent += granted(budget, now_s, wanted=1)
    assert 0.8 * share * 60_000 < spent <= share * 60_000 + 6 * RESERVE


@given(
    st.lists(st.tuples(st.floats(0, 4) | st.just(0.0), st.booleans()), max_size=200),
    st.floats(0, 1),
    st.floats(0, 1e6),
)
def test_retries_never_exceed_their_share_of_the_requests(
    events: list[tuple[float, bool]], share: float, now_s: float
) -> None:
    """At each retry, the window that ends there; and so in any window, of the requests in it and the one before."""
    budget, requests_s, retries_s = RetryBudget(share), list[float](), list[float]()
    for pause_s, is_request in events:
        now_s += pause_s
        if is_request:
            budget.request(now_s)
            requests_s.append(now_s)
        elif budget.may_spend(now_s):
            budget.spend(now_s)
            retries_s.append(now_s)
            requests = sum(now_s - WINDOW_S < at_s for at_s in requests_s)
            retries = sum(now_s - WINDOW_S < at_s for at_s in retries_s)
            assert retries <= share * requests + RESERVE
    for start_s in retries_s:
        requests = sum(start_s - WINDOW_S <= at_s < start_s + WINDOW_S for at_s in requests_s)
        retries = sum(start_s <= at_s < start_s + WINDOW_S for at_s in retries_s)
        assert retries <= share * requests + RESERVE
