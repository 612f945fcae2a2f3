"""Pauses are counted in the bucket of their upper bound, and the first arrival is none."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gaps import BOUNDS_S, Gaps


def test_the_first_arrival_is_no_pause_and_a_bound_belongs_to_its_bucket() -> None:
    gaps = Gaps()
    gaps.saw(0.0)
    assert (sum(gaps.counts), gaps.total_s) == (0, 0.0)
    gaps.saw(BOUNDS_S[0])
    assert gaps.counts[0] == 1
    gaps.saw(BOUNDS_S[0] + 1000.0)
    assert gaps.counts[-1] == 1


@given(st.lists(st.floats(0, 500), max_size=50))
def test_every_pause_is_counted_once_and_no_later_than_its_bound(pauses: list[float]) -> None:
    gaps, together = Gaps(), Gaps()
    times = list(accumulate([1.0, *pauses]))
    for time_s in times:
        gaps.saw(time_s)
    together.saw(times[0])
    for start in range(1, len(times), 3):
        together.saw_all(times[start : start + 3])
    assert (together.counts, together.last_s) == (gaps.counts, gaps.last_s)
    assert together.total_s == pytest.approx(gaps.total_s)
    real = [after - before for before, after in pairwise(times)]
    assert sum(gaps.counts) == len(real)
    for place, bound_s in enumerate(BOUNDS_S):
        assert sum(gaps.counts[: place + 1]) == sum(pause <= bound_s for pause in real)
