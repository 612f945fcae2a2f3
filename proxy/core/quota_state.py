"""What one key has used and reserved, and how the operations on a quota change it.

The embedded store keeps these states; the Redis store's scripts do the same on theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.core.quota import LEASE_MS, Demand, Granted, Limits, Refused, Reservation, amount_of, bounded, counter_name
from proxy.core.quota_windows import Counter, advanced, charged, end_ms, standing, used, wait_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

FORGET_MS: Final = 86_400_000
"""An exchange that was not renewed for so long is not awaited any more: what it reserved stays charged."""


@dataclass(slots=True)
class KeyState:
    """The counters of a key by `counter_name`, and its exchanges in flight by id, each with the end of its lease.

    `slots` are in the order of their ends; `lapsed` are those whose lease ran out, and that may still be settled.
    `look_ms` is when looking whether any of this still counts is worth it.
    """

    counters: dict[str, Counter] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    lapsed: dict[str, int] = field(default_factory=dict)
    look_ms: int = 0


def reserve(  # noqa: PLR0917 - the arguments of `QuotaStore.reserve`, between where and when
    state: KeyState, reservation_id: str, key_id: str, limits: Limits, demand: Demand, now_ms: int
) -> Granted | Refused:
    """Charge `demand` to every window and take a slot, or leave everything as it was."""
    demand = bounded(demand)
    _lapse(state, now_ms)
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
    state.slots[reservation_id] = now_ms + LEASE_MS
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
    if state.slots.pop(reservation.id, None) is None and state.lapsed.pop(reservation.id, None) is None:
        return False
    in_the_end = bounded(in_the_end)
    for limit, bucket in zip(reservation.limits.windows, reservation.buckets, strict=True):
        change = amount_of(in_the_end, limit.kind) - amount_of(reservation.demand, limit.kind)
        counter = state.counters.get(counter_name(limit)) if change else None
        if counter is not None:
            state.counters[counter_name(limit)] = charged(counter, bucket, change)
    return True


def renew(state: KeyState, reservation_id: str, now_ms: int) -> None:
    """Begin a new lease, also where the last one has run out; unless the exchange was settled."""
    if state.slots.pop(reservation_id, None) is not None or state.lapsed.pop(reservation_id, None) is not None:
        state.slots[reservation_id] = now_ms + LEASE_MS


def prune(state: KeyState, now_ms: int) -> int:
    """Forget what does not count any more; the time from which on looking again is worth it, 0 if nothing is left.

    While an exchange is in flight its counters are kept, empty ones too: it may yet be charged to them.
    """
    _lapse(state, now_ms)
    for reservation_id in [one for one, lapsed_ms in state.lapsed.items() if lapsed_ms + FORGET_MS <= now_ms]:
        del state.lapsed[reservation_id]
    if state.slots or state.lapsed:
        return now_ms + LEASE_MS
    for name, counter in list(state.counters.items()):
        if end_ms(counter) <= now_ms or not (counter.current or counter.previous):
            del state.counters[name]
    return max(map(end_ms, state.counters.values()), default=0)


def _lapse(state: KeyState, now_ms: int) -> None:
    """Set aside the exchanges whose leases have run out. They stand first, so that others cost nothing."""
    while state.slots:
        reservation_id = next(iter(state.slots))
        if state.slots[reservation_id] > now_ms:
            return
        state.lapsed[reservation_id] = state.slots.pop(reservation_id)
