"""Restarts: the pauses between them, and when they are a loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.restarts import Restarts


def test_pauses_double_up_to_ten_seconds_and_begin_anew_after_a_long_life() -> None:
    restarts = Restarts()
    assert [restarts.died(float(now), 29.9) for now in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert restarts.died(100.0, 30.0) == 0.1
    assert restarts.died(101.0, 0.0) == 0.2


def test_five_deaths_within_a_minute_are_a_loop_until_the_minute_is_over() -> None:
    restarts = Restarts()
    assert not restarts.is_loop(0.0)
    for now in (0.0, 10.0, 20.0, 30.0):
        restarts.died(now, 0.0)
        assert not restarts.is_loop(now)
    restarts.died(60.0, 0.0)
    assert restarts.is_loop(60.0)
    assert not restarts.is_loop(60.1)


@given(st.lists(st.floats(0.0, 30.0), max_size=40))
def test_a_loop_is_five_deaths_within_a_minute_whatever_came_before(pauses_s: list[float]) -> None:
    restarts, now_s, deaths_s = Restarts(), 0.0, list[float]()
    for pause_s in pauses_s:
        now_s += pause_s
        deaths_s.append(now_s)
        assert 0.1 <= restarts.died(now_s, pause_s) <= 10.0
        assert restarts.is_loop(now_s) == (sum(now_s - death_s <= 60.0 for death_s in deaths_s) >= 5)
