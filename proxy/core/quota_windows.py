"""The windows of limits: what counts at a moment, how long to wait, when all of it is back.

A sliding window is a pair of buckets as long as the window, aligned to the UNIX epoch. What was used in the bucket
before counts in proportion to how much of it the window still covers, rounded up:

    used = ceil(previous * (length - elapsed) / length) + current

A calendar window is one bucket from its start to its end in UTC. Times are whole milliseconds of UNIX time. A clock
that goes back does not open a bucket again: the counter stays where it was.

Only `advanced` and `used` decide; a store that decides elsewhere must calculate as they do. The rest explains.
"""

from __future__ import annotations

import functools
from datetime import date, timedelta
from typing import Final

import msgspec

from proxy.core.quota import MAX_AMOUNT, Calendar, Limit, Standing

_DAY_S: Final = 86_400
_DAY_MS: Final = 86_400_000
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


class Counter(msgspec.Struct, gc=False):
    """What one window has counted: in the bucket that is numbered (or starts, in seconds), and in the one before.

    `previous` is of sliding windows alone. Amounts are charged in place, a bucket that is over makes a new counter.
    """

    window: int | Calendar
    bucket: int
    current: int = 0
    previous: int = 0


def calendar_bounds_s(calendar: Calendar, at_s: int) -> tuple[int, int]:
    """Start and end of the calendar window around a moment, in seconds of UNIX time."""
    return _bounds_of_day(calendar, at_s // _DAY_S)


@functools.lru_cache(64)
def _bounds_of_day(calendar: Calendar, day: int) -> tuple[int, int]:
    if calendar is Calendar.DAY:
        return day * _DAY_S, (day + 1) * _DAY_S
    today = date.fromordinal(day + _EPOCH_DAY)
    if calendar is Calendar.MONTH:
        start = today.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        start = date(today.year, 1, 1)
        end = date(today.year + 1, 1, 1)
    return (start.toordinal() - _EPOCH_DAY) * _DAY_S, (end.toordinal() - _EPOCH_DAY) * _DAY_S


def bucket_at(window: int | Calendar, now_ms: int) -> int:
    """The number of a sliding window's bucket at a moment, or the start of the calendar window in seconds."""
    if isinstance(window, int):
        return now_ms // (window * 1000)
    return _bounds_of_day(window, now_ms // _DAY_MS)[0]


def advanced(counter: Counter | None, window: int | Calendar, now_ms: int) -> Counter:
    """The counter as it stands at a moment: what is over has moved to the previous bucket, or is gone."""
    bucket = bucket_at(window, now_ms)
    if counter is None:
        return Counter(window, bucket)
    if bucket <= counter.bucket:
        return counter
    if bucket == counter.bucket + 1 and isinstance(window, int):
        return Counter(window, bucket, 0, counter.current)
    return Counter(window, bucket)


def used(counter: Counter, now_ms: int) -> int:
    """What counts now, of a counter that is `advanced` to now."""
    if counter.previous and isinstance(counter.window, int):
        length_ms = counter.window * 1000
        return faded(counter.previous, turns_ms(counter) - now_ms, length_ms) + counter.current
    return counter.current


def faded(previous: int, left_ms: int, length_ms: int) -> int:
    """What still counts of the bucket before, `left_ms` before the current one is over."""
    return -(-previous * min(left_ms, length_ms) // length_ms)  # there is more left when the clock went back


def charge(counter: Counter, bucket: int, change: int) -> None:
    """Add `change` to the bucket of that number, if it is one that still counts.

    What is taken back never leads below nothing, which happens where the store has lost what it had counted.
    """
    if bucket == counter.bucket:
        counter.current = min(max(counter.current + change, 0), MAX_AMOUNT)
    elif bucket == counter.bucket - 1 and isinstance(counter.window, int):
        counter.previous = min(max(counter.previous + change, 0), MAX_AMOUNT)


def wait_ms(counter: Counter, amount: int, demand: int, now_ms: int) -> int | None:
    """The time until `demand` fits if nothing else is counted; None if it never will. Of an `advanced` counter.

    Exact: a millisecond earlier it does not fit.
    """
    if demand > amount:
        return None
    if used(counter, now_ms) + demand <= amount:
        return 0
    if not isinstance(counter.window, int):
        return end_ms(counter) - now_ms
    length_ms = counter.window * 1000
    left_ms = min(turns_ms(counter) - now_ms, length_ms)
    late_ms = max(counter.bucket * length_ms - now_ms, 0)  # by how much the clock went back
    covered_ms = _most_covered_ms(counter.previous, amount - demand - counter.current, length_ms)
    if covered_ms > 0:
        return late_ms + left_ms - covered_ms
    covered_ms = _most_covered_ms(counter.current, amount - demand, length_ms)  # when the current is the previous
    return late_ms + left_ms + length_ms - covered_ms


def reset_ms(counter: Counter, now_ms: int) -> int:
    """The time until nothing counts any more, if nothing else is counted. Of an `advanced` counter."""
    if not counter.current and not counter.previous:
        return 0
    return end_ms(counter) - now_ms


def standing(limit: Limit, counter: Counter, now_ms: int) -> Standing:
    """Where a limit stands. Of an `advanced` counter."""
    counted = used(counter, now_ms)
    remaining = limit.amount - counted
    return Standing(limit, counted, max(0, remaining), reset_ms(counter, now_ms) / 1000)


def end_ms(counter: Counter) -> int:
    """When nothing that was counted so far counts any more."""
    if isinstance(counter.window, int) and counter.current:
        return turns_ms(counter) + counter.window * 1000
    return turns_ms(counter)


def turns_ms(counter: Counter) -> int:
    """When the current bucket is over."""
    if isinstance(counter.window, int):
        return (counter.bucket + 1) * counter.window * 1000
    return _bounds_of_day(counter.window, counter.bucket // _DAY_S)[1] * 1000


def _most_covered_ms(previous: int, free: int, length_ms: int) -> int:
    """How much of a previous bucket may be covered while at most `free` of it counts; not positive if none may."""
    return min(free * length_ms // previous, length_ms) if previous else length_ms if free >= 0 else 0
