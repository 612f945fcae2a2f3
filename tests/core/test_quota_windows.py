"""Windows count what they promise, to the token, and waits are true, to the millisecond."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.quota import MAX_AMOUNT, Calendar, Kind, Limit, Standing
from proxy.core.quota_windows import (
    Counter,
    advanced,
    bucket_at,
    calendar_bounds_s,
    charge,
    end_ms,
    reset_ms,
    standing,
    used,
    wait_ms,
)

MINUTE = 29_000_000  # a bucket of a minute, in 2025
START_MS = MINUTE * 60_000

_MOMENTS = st.integers(0, 4_000_000_000_000)
_SLIDING = st.sampled_from([1, 2, 60, 3600, 86_400]) | st.integers(1, 86_400)
_WINDOWS = _SLIDING | st.sampled_from(list(Calendar))
_COUNTS = st.integers(0, 20) | st.integers(0, MAX_AMOUNT)


@st.composite
def _counted(draw: st.DrawFn) -> tuple[Counter, int]:
    """A counter, and a moment to which it is advanced."""
    window, now_ms = draw(_WINDOWS), draw(_MOMENTS)
    previous = draw(_COUNTS) if isinstance(window, int) else 0
    return Counter(window, bucket_at(window, now_ms), draw(_COUNTS), previous), now_ms


def _used_later(counter: Counter, at_ms: int) -> int:
    return used(advanced(counter, counter.window, at_ms), at_ms)


@pytest.mark.parametrize(
    ("elapsed_ms", "counted"),
    [(0, 107), (1, 107), (599, 107), (600, 106), (30_000, 57), (59_400, 8), (59_401, 8), (59_999, 8)],
)
def test_the_bucket_before_fades_and_is_rounded_up(elapsed_ms: int, counted: int) -> None:
    assert used(Counter(60, MINUTE, 7, 100), START_MS + elapsed_ms) == counted


@given(_counted())
def test_what_counts_is_the_definition_of_two_buckets(drawn: tuple[Counter, int]) -> None:
    counter, now_ms = drawn
    if isinstance(counter.window, int):
        length_ms = counter.window * 1000
        share = 1 - Fraction(now_ms % length_ms, length_ms)
        assert used(counter, now_ms) == ceil(counter.previous * share) + counter.current
    else:
        assert used(counter, now_ms) == counter.current


def test_buckets_move_on() -> None:
    counter = Counter(60, MINUTE, 7, 100)
    assert advanced(counter, 60, START_MS + 59_999) == counter
    assert advanced(counter, 60, START_MS + 60_000) == Counter(60, MINUTE + 1, 0, 7)
    assert advanced(counter, 60, START_MS + 119_999) == Counter(60, MINUTE + 1, 0, 7)
    assert advanced(counter, 60, START_MS + 120_000) == Counter(60, MINUTE + 2)
    assert advanced(None, 60, START_MS) == Counter(60, MINUTE)


def test_a_clock_that_goes_back_opens_nothing_again() -> None:
    counter = Counter(60, MINUTE, 7, 100)
    earlier_ms = START_MS - 100_000
    assert advanced(counter, 60, earlier_ms) == counter
    assert used(counter, earlier_ms) == 107
    wait = wait_ms(counter, 106, 0, earlier_ms)
    assert wait == 100_600
    assert _used_later(counter, earlier_ms + wait) == 106
    today = calendar_bounds_s(Calendar.DAY, START_MS // 1000)[0]
    assert advanced(Counter(Calendar.DAY, today, 5), Calendar.DAY, (today - 1) * 1000) == Counter(
        Calendar.DAY, today, 5
    )


@pytest.mark.parametrize(
    ("calendar", "moment", "start", "end"),
    [
        (Calendar.DAY, "2026-03-29T01:30:00", "2026-03-29", "2026-03-30"),
        (Calendar.MONTH, "2026-01-31T23:59:59", "2026-01-01", "2026-02-01"),
        (Calendar.MONTH, "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        (Calendar.MONTH, "2026-12-01T00:00:00", "2026-12-01", "2027-01-01"),
        (Calendar.YEAR, "2028-12-31T23:59:59", "2028-01-01", "2029-01-01"),
    ],
)
def test_calendar_windows_in_utc(calendar: Calendar, moment: str, start: str, end: str) -> None:
    bounds = calendar_bounds_s(calendar, int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()))
    assert [datetime.fromtimestamp(bound, UTC).isoformat()[:10] for bound in bounds] == [start, end]


@given(st.sampled_from(list(Calendar)), st.integers(0, 4_000_000_000))
def test_calendar_windows_follow_each_other(calendar: Calendar, at_s: int) -> None:
    start_s, end_s = calendar_bounds_s(calendar, at_s)
    assert start_s <= at_s < end_s
    assert calendar_bounds_s(calendar, start_s - 1)[1] == start_s
    assert calendar_bounds_s(calendar, end_s)[0] == end_s
    start = datetime.fromtimestamp(start_s, UTC)
    assert start.time() == datetime.min.time()
    assert calendar is Calendar.DAY or start.day == 1
    assert calendar is not Calendar.YEAR or start.month == 1
    assert (
        timedelta(seconds=end_s - start_s).days
        in {
            Calendar.DAY: {1},
            Calendar.MONTH: {28, 29, 30, 31},
            Calendar.YEAR: {365, 366},
        }[calendar]
    )


@given(_counted(), st.integers(1, MAX_AMOUNT), _COUNTS)
@example((Counter(60, MINUTE, 0, 100), START_MS), 10, 10)
@example((Counter(60, MINUTE, 10, 1), START_MS + 59_999), 10, 1)
def test_waits_are_true(drawn: tuple[Counter, int], amount: int, demand: int) -> None:
    """At the wait the demand fits, a millisecond before it does not."""
    counter, now_ms = drawn
    wait = wait_ms(counter, amount, demand, now_ms)
    assert (wait is None) == (demand > amount)
    if wait is not None:
        assert _used_later(counter, now_ms + wait) + demand <= amount
        assert wait == 0 or _used_later(counter, now_ms + wait - 1) + demand > amount


@given(_counted())
def test_at_the_reset_nothing_counts_any_more(drawn: tuple[Counter, int]) -> None:
    counter, now_ms = drawn
    wait = reset_ms(counter, now_ms)
    assert _used_later(counter, now_ms + wait) == 0
    assert wait == 0 or _used_later(counter, now_ms + wait - 1) > 0
    over = advanced(counter, counter.window, end_ms(counter))
    assert (over.current, over.previous) == (0, 0)


@given(_counted(), st.integers(0, 3), st.integers(-MAX_AMOUNT, MAX_AMOUNT))
def test_a_charge_lands_in_its_bucket_or_nowhere(drawn: tuple[Counter, int], ago: int, change: int) -> None:
    counter, _ = drawn
    sliding = isinstance(counter.window, int)
    bucket = counter.bucket - ago
    after = copy.copy(counter)
    charge(after, bucket, change)
    assert (after.window, after.bucket) == (counter.window, counter.bucket)
    current = counter.current + change if ago == 0 else counter.current
    previous = counter.previous + change if ago == 1 and sliding else counter.previous
    assert after.current == sorted((0, current, MAX_AMOUNT))[1]
    assert after.previous == sorted((0, previous, MAX_AMOUNT))[1]


def test_a_standing_tells_what_is_left_and_when_all_of_it_is_back() -> None:
    limit = Limit(Kind.TOKENS, 110, 60)
    half = START_MS + 30_000
    assert standing(limit, Counter(60, MINUTE, 0, 100), half) == Standing(limit, 50, 60, 30.0)
    assert standing(limit, Counter(60, MINUTE, 80, 100), half) == Standing(limit, 130, 0, 90.0)
    assert standing(limit, Counter(60, MINUTE), half) == Standing(limit, 0, 110, 0.0)
