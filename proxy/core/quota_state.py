"""What one key has used and reserved, and how the operations on a quota change it.

The embedded store keeps these states; the Redis store's scripts do the same on theirs.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.quota import (
    MAX_AMOUNT,
    Demand,
    Granted,
    Limit,
    Limits,
    Refused,
    Reservation,
    Standing,
    amount_of,
    bounded,
)
from proxy.core.quota_windows import Counter, advanced, charge, end_ms, faded, standing, turns_ms, wait_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

_IN_FLIGHT_MS: Final = 30_000
"""How long a key with exchanges in flight is not looked at: most of them are over by then."""


class Sheet(msgspec.Struct, frozen=True, gc=False):
    """The counters of a key that some limits count in, laid out for one exchange after the other.

    It holds until the first of them turns to another bucket at `turns_ms`: until then `buckets` are those that are
    charged. `rows` hold of each window its counter, which amount of a demand that counts, the limit, its amount, when
    the bucket is over, and the length in milliseconds of one that slides, 0 of another.
    """

    limits: Limits
    counters: tuple[Counter, ...]
    buckets: tuple[int, ...]
    rows: tuple[tuple[Counter, int, Limit, int, int, int], ...]
    turns_ms: float


class KeyState(msgspec.Struct, gc=False):
    """The counters of a key by `counter_name`, and the ids of its exchanges in flight.

    `slots` are those that hold one; `released` have given theirs back, and are still to be settled. There is no lease:
    who holds a slot is in the same process, and dies with this. `sheet` is that of the limits that were charged last.
    `look_ms` is when looking whether any of this still counts is worth it.
    """

    counters: dict[str, Counter] = msgspec.field(default_factory=dict)
    slots: set[str] = msgspec.field(default_factory=set)
    released: set[str] = msgspec.field(default_factory=set)
    sheet: Sheet | None = None
    look_ms: int = 0


def reserve(  # noqa: PLR0917 - the arguments of `QuotaStore.reserve`, between where and when
    state: KeyState, reservation_id: str, key_id: str, limits: Limits, demand: Demand, now_ms: int
) -> Granted | Refused:
    """Charge `demand` to every window and take a slot, or leave everything as it was."""
    demand = bounded(demand)
    sheet = state.sheet
    if sheet is None or sheet.limits is not limits or now_ms >= sheet.turns_ms:
        sheet = _sheet(state, limits, now_ms)
    slots = state.slots
    if limits.concurrency is not None and len(slots) >= limits.concurrency:
        return refused(limits, demand, sheet.counters, now_ms)
    standings: list[Standing] = []
    for counter, at, limit, amount, over_ms, length_ms in sheet.rows:
        # as `used` and `standing` would have it of a counter with the demand in it
        counted = current = counter.current + demand[at]
        if counter.previous:
            counted += faded(counter.previous, over_ms - now_ms, length_ms)
        if counted > amount:
            _take_back(sheet, len(standings), demand)
            return refused(limits, demand, sheet.counters, now_ms)
        counter.current = current
        reset_ms = over_ms - now_ms if counted else 0
        if current:
            reset_ms += length_ms
        standings.append(Standing(limit, counted, amount - counted, reset_ms / 1000))
    if sheet is not state.sheet:
        state.sheet = sheet
        state.counters.update(zip(limits.names, sheet.counters, strict=True))
    slots.add(reservation_id)
    return Granted(Reservation(reservation_id, key_id, limits, demand, sheet.buckets), tuple(standings))


def _take_back(sheet: Sheet, charged: int, demand: Demand) -> None:
    """Leave the first windows, which had room, as they were before the next had none."""
    for counter, at, *_ in sheet.rows[:charged]:
        counter.current -= demand[at]


def _sheet(state: KeyState, limits: Limits, now_ms: int) -> Sheet:
    windows = zip(limits.windows, limits.names, strict=True)
    counters = tuple([advanced(state.counters.get(name), limit.window, now_ms) for limit, name in windows])
    ends_ms = tuple(map(turns_ms, counters))
    rows = tuple(
        (counter, at, limit, limit.amount, over_ms, limit.window * 1000 if isinstance(limit.window, int) else 0)
        for counter, at, limit, over_ms in zip(counters, limits.places, limits.windows, ends_ms, strict=True)
    )
    return Sheet(limits, counters, tuple([counter.bucket for counter in counters]), rows, min(ends_ms, default=inf))


def refused(limits: Limits, demand: Demand, counters: Sequence[Counter], now_ms: int) -> Refused:
    """Why a demand is refused, and how long it has to wait. `counters` are of `limits.windows`, `advanced` to now."""
    standings = tuple(standing(limit, counter, now_ms) for limit, counter in zip(limits.windows, counters, strict=True))
    longest_ms = 0
    refusing = None
    for limit, counter in zip(limits.windows, counters, strict=True):
        limit_wait_ms = wait_ms(counter, limit.amount, amount_of(demand, limit.kind), now_ms)
        if limit_wait_ms is None:
            return Refused(limit, None, standings)
        if limit_wait_ms > longest_ms:
            longest_ms, refusing = limit_wait_ms, limit
    return Refused(refusing, longest_ms / 1000 if refusing else None, standings)


def settle(state: KeyState, reservation: Reservation, in_the_end: Demand) -> bool:
    """Replace what was reserved by what was used, and free the slot. False if that has been done already.

    Each window is corrected in the bucket that was charged; where that bucket is over, there is nothing to correct.
    """
    if reservation.id in state.slots:
        state.slots.remove(reservation.id)
    elif reservation.id in state.released:
        state.released.remove(reservation.id)
    else:
        return False
    in_the_end, reserved = bounded(in_the_end), reservation.demand
    sheet = state.sheet
    if sheet is None or sheet.buckets is not reservation.buckets:
        _settle_by_name(state, reservation, in_the_end)
        return True
    for counter, at in zip(sheet.counters, sheet.limits.places):  # noqa: B905 - as above
        current = counter.current + in_the_end[at] - reserved[at]
        counter.current = current if 0 <= current <= MAX_AMOUNT else min(max(current, 0), MAX_AMOUNT)
    return True


def _settle_by_name(state: KeyState, reservation: Reservation, in_the_end: Demand) -> None:
    """Of a reservation that was charged in other buckets, or by other limits, than those charged now."""
    limits = reservation.limits
    for name, at, bucket in zip(limits.names, limits.places, reservation.buckets, strict=True):
        counter = state.counters.get(name)
        if counter is not None:
            charge(counter, bucket, in_the_end[at] - reservation.demand[at])


def release(state: KeyState, reservation_id: str) -> None:
    """Free the slot of an exchange that is still to be settled; unless it was settled or has given it back."""
    if reservation_id in state.slots:
        state.slots.remove(reservation_id)
        state.released.add(reservation_id)


def prune(state: KeyState, now_ms: int) -> int:
    """Forget what does not count any more; the time from which on looking again is worth it, 0 if nothing is left.

    While an exchange is in flight its counters are kept, empty ones too: it may yet be charged to them.
    """
    if state.slots or state.released:
        return now_ms + _IN_FLIGHT_MS
    state.sheet = None
    for name, counter in list(state.counters.items()):
        if end_ms(counter) <= now_ms or not (counter.current or counter.previous):
            del state.counters[name]
    return max(map(end_ms, state.counters.values()), default=0)
