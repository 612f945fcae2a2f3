"""What one key has used and reserved, and how the operations on a quota change it.

The embedded store keeps these states; the Redis store's scripts do the same on theirs.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.quota import Demand, Granted, Kind, Limits, Refused, Reservation, amount_of, bounded
from proxy.core.quota_stands import NOTHING, Charged, Laid, Stands, laid_out
from proxy.core.quota_windows import Counter, advanced, charge, end_ms, turns_ms, used, wait_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

_IN_FLIGHT_MS: Final = 30_000
"""How long a key with exchanges in flight is not looked at: most of them are over by then."""


class Sheet(msgspec.Struct, gc=False):
    """The counters of a key that some limits count in, for one exchange after the other: a sum for each kind.

    It holds from `from_ms` until the first window turns to another bucket at `turns_ms`: until then `buckets` are those
    that are charged. `charged` is what was since the counters were laid out, and while it is at most `most` of each
    kind, every window has room for it. `most` is as of `from_ms`: later there is more, as what was used before fades.
    """

    laid: Laid
    buckets: tuple[int, ...]
    most: tuple[float, float, float]
    from_ms: int
    turns_ms: float
    charged: Charged = NOTHING


class KeyState(msgspec.Struct, gc=False):
    """The counters of a key by `counter_name`, less what its `sheet` was charged; the ids of its exchanges in flight.

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
    if sheet is None or sheet.laid.limits is not limits or not sheet.from_ms <= now_ms < sheet.turns_ms:
        sheet = _sheet(state, limits, now_ms)
    slots = state.slots
    if limits.concurrency is not None and len(slots) >= limits.concurrency:
        return refused(limits, demand, sheet.laid.counted(sheet.charged), now_ms)
    charged_requests, charged_tokens, charged_micro_usd = sheet.charged
    most_requests, most_tokens, most_micro_usd = sheet.most
    requests = charged_requests + demand.requests
    tokens = charged_tokens + demand.tokens
    micro_usd = charged_micro_usd + demand.micro_usd
    if requests > most_requests or tokens > most_tokens or micro_usd > most_micro_usd:
        if sheet.from_ms == now_ms:
            return refused(limits, demand, sheet.laid.counted(sheet.charged), now_ms)
        _lift(state)  # there is more room by now
        return reserve(state, reservation_id, key_id, limits, demand, now_ms)
    sheet.charged = charged = requests, tokens, micro_usd
    if sheet is not state.sheet:
        state.sheet = sheet
        state.counters.update(zip(limits.names, sheet.laid.counters, strict=True))
    slots.add(reservation_id)
    reservation = Reservation(reservation_id, key_id, limits, demand, sheet.buckets)
    return Granted(reservation, Stands(sheet.laid, charged, now_ms))


def counted(state: KeyState) -> dict[str, Counter]:
    """The counters of a key, by name, with everything that was charged in them."""
    sheet = state.sheet
    if sheet is None:
        return state.counters
    return state.counters | dict(zip(sheet.laid.limits.names, sheet.laid.counted(sheet.charged), strict=True))


def _lift(state: KeyState) -> None:
    state.counters = counted(state)
    state.sheet = None


def _sheet(state: KeyState, limits: Limits, now_ms: int) -> Sheet:
    _lift(state)
    named = zip(limits.windows, limits.names, strict=True)
    counters = [advanced(state.counters.get(name), limit.window, now_ms) for limit, name in named]
    room = [limit.amount - used(counter, now_ms) for limit, counter in zip(limits.windows, counters, strict=True)]
    most_requests, most_tokens, most_micro_usd = (
        min((left for left, at in zip(room, limits.places, strict=True) if at == place), default=inf)
        for place in range(len(Kind))
    )
    return Sheet(
        laid_out(limits, counters),
        tuple([counter.bucket for counter in counters]),
        (most_requests, most_tokens, most_micro_usd),
        now_ms,
        min(map(turns_ms, counters), default=inf),
    )


def refused(limits: Limits, demand: Demand, counters: Sequence[Counter], now_ms: int) -> Refused:
    """Why a demand is refused, and how long it has to wait. `counters` are of `limits.windows`, `advanced` to now."""
    stands = Stands(laid_out(limits, counters), NOTHING, now_ms)
    longest_ms = 0
    refusing = None
    for limit, counter in zip(limits.windows, counters, strict=True):
        limit_wait_ms = wait_ms(counter, limit.amount, amount_of(demand, limit.kind), now_ms)
        if limit_wait_ms is None:
            return Refused(limit, None, stands)
        if limit_wait_ms > longest_ms:
            longest_ms, refusing = limit_wait_ms, limit
    return Refused(refusing, longest_ms / 1000 if refusing else None, stands)


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
    if sheet is not None and sheet.buckets == reservation.buckets and sheet.laid.limits is reservation.limits:
        requests, tokens, micro_usd = sheet.charged
        most_requests, most_tokens, most_micro_usd = sheet.most
        requests += in_the_end.requests - reserved.requests
        tokens += in_the_end.tokens - reserved.tokens
        micro_usd += in_the_end.micro_usd - reserved.micro_usd
        if requests <= most_requests and tokens <= most_tokens and micro_usd <= most_micro_usd:
            sheet.charged = requests, tokens, micro_usd
            return True
    _settle_by_name(state, reservation, in_the_end)
    return True


def _settle_by_name(state: KeyState, reservation: Reservation, in_the_end: Demand) -> None:
    """Of a reservation that was charged in other buckets, or by other limits, than those charged now.

    And of one that used more than there was room for: that is charged in full.
    """
    _lift(state)
    limits = reservation.limits
    for name, limit, bucket in zip(limits.names, limits.windows, reservation.buckets, strict=True):
        counter = state.counters.get(name)
        if counter is not None:
            change = amount_of(in_the_end, limit.kind) - amount_of(reservation.demand, limit.kind)
            charge(counter, bucket, change)


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
    _lift(state)
    for name, counter in list(state.counters.items()):
        if end_ms(counter) <= now_ms or not (counter.current or counter.previous):
            del state.counters[name]
    return max(map(end_ms, state.counters.values()), default=0)
