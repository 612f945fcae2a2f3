"""What was counted lately, against a list of all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.recent import Recent


@given(st.lists(st.tuples(st.floats(0, 12), st.booleans())), st.integers(1, 11), st.floats(0, 1e9))
def test_it_counts_what_came_lately(events: list[tuple[float, bool]], steps: int, now_s: float) -> None:
    recent, added_s = Recent(steps), list[float]()
    for pause_s, is_added in events:
        now_s += pause_s
        if is_added:
            recent.add(now_s)
            added_s.append(now_s)
        surely = sum(now_s - at_s <= steps - 1 for at_s in added_s)
        at_most = sum(now_s - at_s < steps for at_s in added_s)
        assert surely <= recent.total(now_s) <= at_most


def test_it_can_start_again() -> None:
    recent = Recent(10)
    recent.add(5)
    recent.clear()
    assert recent.total(5) == 0
    recent.add(6)
    assert [recent.total(now_s) for now_s in (6, 15.9, 16)] == [1, 1, 0]


def test_a_clock_that_goes_back_loses_nothing() -> None:
    recent = Recent(10)
    recent.add(50)
    recent.add(20)
    assert recent.total(30) == 2
