"""What is laid out for a key's limits counts as the definitions of windows do, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from proxy.core import quota_state
from proxy.core.quota import (
    MAX_AMOUNT,
    Calendar,
    Demand,
    Granted,
    Kind,
    Limit,
    Limits,
    Reservation,
    Standing,
    amount_of,
    counter_name,
)
from proxy.core.quota_state import KeyState
from proxy.core.quota_windows import Counter, advanced, charge, standing, used
from tests.fakes.quotas import START_MS

_REQUESTS = Limit(Kind.REQUESTS, 5, 2)
_TOKENS = Limit(Kind.TOKENS, 100, 60)
_LIMITS = (
    Limits((_REQUESTS, _TOKENS, Limit(Kind.TOKENS, 300, Calendar.DAY), Limit(Kind.SPEND, 900, Calendar.MONTH))),
    Limits((_TOKENS._replace(amount=70), _TOKENS._replace(amount=40, model="gpt-*"), _REQUESTS)),
    Limits((Limit(Kind.TOKENS, MAX_AMOUNT, 3600), Limit(Kind.SPEND, MAX_AMOUNT, Calendar.YEAR))),
    Limits((), 3),
)
_AMOUNTS = st.integers(0, 60) | st.sampled_from([0, MAX_AMOUNT - 7, MAX_AMOUNT])
_DEMANDS = st.builds(Demand, st.integers(0, 2), _AMOUNTS, _AMOUNTS)
# time that goes back too: a store's clock does not, but no bucket may open again if it did
_PASSING_MS = st.integers(-3000, 3000) | st.sampled_from([0, 0, 1, 60_000, 120_000, 3_600_000, 86_400_000, -90_000])
_STEPS = st.tuples(_PASSING_MS, st.sampled_from(_LIMITS), _DEMANDS, st.none() | _DEMANDS)


@dataclass
class _ByDefinition:
    """The same, each window by its name, by the functions that define windows alone."""

    counters: dict[str, Counter] = field(default_factory=dict)

    def reserve(self, limits: Limits, demand: Demand, now_ms: int) -> tuple[Standing, ...] | None:
        found = [advanced(self.counters.get(counter_name(limit)), limit.window, now_ms) for limit in limits.windows]
        pairs = list(zip(limits.windows, found, strict=True))
        if any(used(counter, now_ms) + amount_of(demand, limit.kind) > limit.amount for limit, counter in pairs):
            return None
        for limit, counter in pairs:
            charge(counter, counter.bucket, amount_of(demand, limit.kind))
            self.counters[counter_name(limit)] = counter
        return tuple([standing(limit, counter, now_ms) for limit, counter in pairs])

    def settle(self, reservation: Reservation, in_the_end: Demand) -> None:
        for limit, bucket in zip(reservation.limits.windows, reservation.buckets, strict=True):
            change = amount_of(in_the_end, limit.kind) - amount_of(reservation.demand, limit.kind)
            charge(self.counters[counter_name(limit)], bucket, change)


@given(st.lists(_STEPS, max_size=30))
def test_every_step_leaves_what_the_definitions_do(steps: list[tuple[int, Limits, Demand, Demand | None]]) -> None:
    state, reference, now_ms = KeyState(), _ByDefinition(), START_MS
    in_flight: list[Reservation] = []
    for number, (passing_ms, limits, demand, in_the_end) in enumerate(steps):
        now_ms += passing_ms
        answer = quota_state.reserve(state, f"exc_{number}", "team-a", limits, demand, now_ms)
        if limits.concurrency is None or isinstance(answer, Granted):
            expected = reference.reserve(limits, demand, now_ms)
            assert (answer.stands.standings() if isinstance(answer, Granted) else None) == expected
        if isinstance(answer, Granted):
            in_flight.append(answer.reservation)
        if in_the_end is not None and in_flight:
            reservation = in_flight.pop(number % len(in_flight))  # also of buckets that are over, and of other limits
            assert quota_state.settle(state, reservation, in_the_end)
            reference.settle(reservation, in_the_end)
        assert quota_state.counted(state) == reference.counters
