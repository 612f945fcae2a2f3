"""A store of quotas with a clock in the test's hand, and what it should say: recounted from a list of all charges."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from proxy.core.quota import LEASE_MS, Calendar, Demand, Granted, Kind, Limit, Limits, Reservation

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.stores.base import QuotaStore

START_MS = int(datetime(2026, 1, 31, 23, 59, 30, 123_000, UTC).timestamp() * 1000)
"""Shortly before a day and a month end, and at no bucket's edge."""


@dataclass
class QuotaStage:
    """A store under test. `advance` lets so many milliseconds pass for it; `now_ms` is its own time.

    `lease_ms` is how long it keeps a slot that is not renewed.
    """

    store: QuotaStore
    now_ms: Callable[[], int]
    advance: Callable[[int], None]
    lease_ms: float = LEASE_MS


@dataclass
class ManualClock:
    """UNIX time in milliseconds, moved by hand."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        self.now_ms += milliseconds


@dataclass
class Charge:
    """What one exchange was charged, and when; settling replaces the demand and leaves the time."""

    reservation: Reservation
    at_ms: int
    demand: Demand
    lease_end_ms: float
    is_open: bool = True
    is_released: bool = False


def amount(demand: Demand, kind: Kind) -> int:
    return {Kind.REQUESTS: demand.requests, Kind.TOKENS: demand.tokens, Kind.SPEND: demand.micro_usd}[kind]


def same_counter(limit: Limit, other: Limit) -> bool:
    return limit._replace(amount=0) == other._replace(amount=0)


@dataclass
class Recount:
    """Every charge there was. Nothing is kept but the list: each question is answered by going through all of it."""

    lease_ms: float
    charges: list[Charge] = field(default_factory=list)

    def used(self, key_id: str, limit: Limit, now_ms: int) -> int:
        """By the definition of section 10 of the design: two buckets, or the day, month or year of the calendar."""
        counted = [
            (charge.at_ms, amount(charge.demand, limit.kind))
            for charge in self.charges
            if charge.reservation.key_id == key_id
            and any(same_counter(limit, other) for other in charge.reservation.limits.windows)
        ]
        if isinstance(limit.window, Calendar):
            return sum(much for at_ms, much in counted if _date(at_ms, limit.window) == _date(now_ms, limit.window))
        length_ms = limit.window * 1000
        bucket, elapsed_ms = divmod(now_ms, length_ms)
        current = sum(much for at_ms, much in counted if at_ms // length_ms == bucket)
        previous = sum(much for at_ms, much in counted if at_ms // length_ms == bucket - 1)
        return (ceil(previous * (1 - Fraction(elapsed_ms, length_ms))) if previous else 0) + current

    def slots(self, key_id: str, now_ms: int) -> int:
        """How many exchanges of a key hold a slot."""
        return sum(
            charge.is_open and not charge.is_released and charge.lease_end_ms > now_ms
            for charge in self.charges
            if charge.reservation.key_id == key_id
        )

    def unfit(self, key_id: str, limits: Limits, demand: Demand, now_ms: int) -> list[Limit]:
        """The limits that a demand does not fit."""
        return [
            limit
            for limit in limits.windows
            if self.used(key_id, limit, now_ms) + amount(demand, limit.kind) > limit.amount
        ]

    def is_full(self, key_id: str, limits: Limits, now_ms: int) -> bool:
        return limits.concurrency is not None and self.slots(key_id, now_ms) >= limits.concurrency

    def grant(self, granted: Granted, now_ms: int) -> Charge:
        reservation = granted.reservation
        charge = Charge(reservation, now_ms, reservation.demand, now_ms + self.lease_ms)
        self.charges.append(charge)
        return charge


def _date(at_ms: int, calendar: Calendar) -> str:
    """As much of the date as tells one window of the calendar from another."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()[: {"year": 4, "month": 7, "day": 10}[calendar.value]]
