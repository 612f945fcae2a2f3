"""What one key has used and reserved, and how the operations on a quota change it.

The embedded store keeps these states; the Redis store's scripts do the same on theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.core.quota import Demand, Granted, Limits, Refused, Reservation, amount_of, bounded, counter_name
from proxy.core.quota_windows import Counter, advanced, charged, end_ms, standing, used, wait_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

_IN_FLIGHT_MS: Final = 30_000
"""How long a key with exchanges in flight is not looked at: most of them are over by then."""


@dataclass(slots=True)
class KeyState:
    """The counters of a key by `counter_name`, and the ids of its exchanges in flight.

    `slots` are those that hold one; `released` have given theirs back, and are still to be settled. There is no lease:
    who holds a slot is in the same process, and dies with this. `look_ms` is when looking whether any of this still
    counts is worth it.
    """

    counters: dict[str, Counter] = field(default_factory=dict)
    slots: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    look_ms: int = 0


def reserve(  # noqa: PLR0917 - the arguments of `QuotaStore.reserve`, between where and when
    state: KeyState, reservation_id: str, key_id: str, limits: Limits, demand: Demand, now_ms: int
) -> Granted | Refused:
    """Charge `demand` to every window and take a slot, or leave everything as it was."""
    demand = bounded(demand)
    is_admitted = limits.concurrency is None or len(state.slots) < limits.concurrency
    counters = []
    for limit in limits.windows:
        counter = advanced(state.counters.get(counter_name(limit)), limit.window, now_ms)
        counters.append(counter)
        if used(counter, now_ms) + amount_of(demand, limit.kind) > limit.amount:
            is_admitted = False
    if not is_admitted:
        return refused(limits, demand, counters, now_ms)
    standings = []
    buckets = []
    for limit, (window, bucket, current, previous) in zip(limits.windows, counters, strict=True):
        counter = Counter(window, bucket, current + amount_of(demand, limit.kind), previous)
        state.counters[counter_name(limit)] = counter
        standings.append(standing(limit, counter, now_ms))
        buckets.append(bucket)
    state.slots.add(reservation_id)
    return Granted(Reservation(reservation_id, key_id, limits, demand, tuple(buckets)), tuple(standings))


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
    in_the_end = bounded(in_the_end)
    for limit, bucket in zip(reservation.limits.windows, reservation.buckets, strict=True):
        change = amount_of(in_the_end, limit.kind) - amount_of(reservation.demand, limit.kind)
        counter = state.counters.get(counter_name(limit)) if change else None
        if counter is not None:
            state.counters[counter_name(limit)] = charged(counter, bucket, change)
    return True


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
    for name, counter in list(state.counters.items()):
        if end_ms(counter) <= now_ms or not (counter.current or counter.previous):
            del state.counters[name]
    return max(map(end_ms, state.counters.values()), default=0)
