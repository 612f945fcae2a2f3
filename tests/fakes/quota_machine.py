"""A Hypothesis state machine that uses a store of quotas in every order, and recounts what it should say."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule
from msgspec.structs import astuple

from proxy.core.quota import LEASE_MS, Calendar, Demand, Granted, Kind, Limit, Limits, Refused
from tests.fakes.quotas import Charge, QuotaStage, Recount, amount

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

KEYS = ("team-a", "team-{b}:tokens:60:")
REQUESTS = Limit(Kind.REQUESTS, 5, 2)
TOKENS = Limit(Kind.TOKENS, 100, 60)
WIDE = Limits(
    (REQUESTS, TOKENS, Limit(Kind.TOKENS, 300, Calendar.DAY), Limit(Kind.SPEND, 900, Calendar.MONTH)), concurrency=3
)
NARROW = Limits((TOKENS._replace(amount=70), TOKENS._replace(amount=40, model="gpt-*"), REQUESTS), concurrency=2)
LARGE = Limits((Limit(Kind.TOKENS, 10**12, 3600), Limit(Kind.SPEND, 10**15, Calendar.YEAR), REQUESTS))
LIMITS = (WIDE, NARROW, LARGE, Limits((), concurrency=1))

DEMANDS = st.builds(
    Demand, st.just(1), st.integers(0, 60) | st.sampled_from([101, 10**11]), st.integers(0, 300) | st.just(10**14)
)
USED = DEMANDS | st.just(Demand(requests=1)) | st.builds(Demand, st.just(1), st.integers(0, 10**12), st.just(0))
PASSING_MS = (
    st.integers(0, 100)
    | st.integers(100, 3000)
    | st.integers(3000, 130_000)
    | st.sampled_from([1, 877, 2000, LEASE_MS - 1, LEASE_MS, 60_000, 3_600_000, 86_400_000, 32 * 86_400_000])
)


class QuotaMachine(RuleBasedStateMachine):
    """Subclasses open a stage, and say how a coroutine of the store is run."""

    charges: Bundle[Charge] = Bundle("charges")

    def __init__(self) -> None:
        super().__init__()
        self.stage = self.open_stage()
        self.recount = Recount(self.stage.lease_ms)
        self.ids = (f"exc_{number}" for number in itertools.count())

    def open_stage(self) -> QuotaStage:
        """A new store, its clock at `START_MS`."""
        raise NotImplementedError

    def run(self, answer: Coroutine[object, None, T]) -> T:
        raise NotImplementedError

    def snapshot(self) -> object:
        """The whole state, as far as it counts now; None where it cannot be seen."""
        return None

    def check_used(self, key_id: str, limits: Limits, answer: Granted | Refused) -> None:
        now_ms = self.stage.now_ms()
        used = [self.recount.used(key_id, limit, now_ms) for limit in limits.windows]
        assert [standing.used for standing in answer.stands.standings()] == used

    def check_standings(self, key_id: str, limits: Limits, answer: Granted | Refused) -> None:
        self.check_used(key_id, limits, answer)
        now_ms = self.stage.now_ms()
        assert [standing.limit for standing in answer.stands.standings()] == list(limits.windows)
        for standing in answer.stands.standings():
            limit, reset_ms = standing.limit, round(standing.reset_s * 1000)
            assert standing.remaining == max(limit.amount - standing.used, 0)
            assert self.recount.used(key_id, limit, now_ms + reset_ms) == 0
            assert reset_ms == 0 or self.recount.used(key_id, limit, now_ms + reset_ms - 1) > 0

    def ask(self, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused:
        """Reserve, and check the answer against the recount of all charges so far."""
        now_ms = self.stage.now_ms()
        unfit = self.recount.unfit(key_id, limits, demand, now_ms)
        is_full = self.recount.is_full(key_id, limits, now_ms)
        before = self.snapshot()
        answer = self.run(self.stage.store.reserve(next(self.ids), key_id, limits, demand))
        if isinstance(answer, Granted):
            assert (unfit, is_full) == ([], False)
            assert astuple(answer.reservation)[1:4] == (key_id, limits, demand)
            self.recount.grant(answer, now_ms)
        else:
            assert self.snapshot() == before
            assert unfit or is_full
            assert answer.limit in unfit if unfit else answer.limit is None
            never = any(amount(demand, limit.kind) > limit.amount for limit in unfit)
            assert (answer.wait_s is None) == (never or not unfit)
        self.check_standings(key_id, limits, answer)
        return answer

    @rule(target=charges, key_id=st.sampled_from(KEYS), limits=st.sampled_from(LIMITS), demand=DEMANDS)
    def reserve(self, key_id: str, limits: Limits, demand: Demand) -> Charge | MultipleResults[Charge]:
        return self.recount.charges[-1] if isinstance(self.ask(key_id, limits, demand), Granted) else multiple()

    @rule(target=charges, key_id=st.sampled_from(KEYS), limits=st.sampled_from(LIMITS), demand=DEMANDS)
    def wait_as_told(self, key_id: str, limits: Limits, demand: Demand) -> Charge | MultipleResults[Charge]:
        """A refused client that comes back when it was told to is admitted, and a millisecond earlier is not."""
        answer = self.ask(key_id, limits, demand)
        if isinstance(answer, Refused) and answer.wait_s is not None:
            self.stage.advance(round(answer.wait_s * 1000) - 1)
            assert isinstance(self.ask(key_id, limits, demand), Refused)
            self.stage.advance(1)
            assert not self.recount.unfit(key_id, limits, demand, self.stage.now_ms())
            answer = self.ask(key_id, limits, demand)
        return self.recount.charges[-1] if isinstance(answer, Granted) else multiple()

    @rule(charge=charges, used=USED)
    def settle(self, charge: Charge, used: Demand) -> None:
        """Also a second time, which changes nothing."""
        self.run(self.stage.store.settle(charge.reservation, used))
        if charge.is_open:
            charge.demand, charge.is_open = used, False

    @rule(charge=consumes(charges))
    def fail(self, charge: Charge) -> None:
        """The upstream produced nothing: everything but the request is given back."""
        self.settle(charge, Demand(requests=1))

    @rule(renewed=st.lists(charges, max_size=3))
    def renew(self, renewed: list[Charge]) -> None:
        self.run(self.stage.store.renew([charge.reservation for charge in renewed]))
        for charge in renewed:
            charge.lease_end_ms = self.stage.now_ms() + self.stage.lease_ms

    @rule(charge=charges)
    def release(self, charge: Charge) -> None:
        """Also a second time, and of one that is settled or whose lease has run out."""
        self.run(self.stage.store.release(charge.reservation))
        charge.is_released = True

    @rule(milliseconds=PASSING_MS)
    def time_passes(self, milliseconds: int) -> None:
        self.stage.advance(milliseconds)

    @invariant()
    def every_window_stands_where_it_should(self) -> None:
        """Asked by demands of nothing, which are refused or given back at once."""
        for key_id, limits in itertools.product(KEYS, (WIDE, NARROW)):
            answer = self.run(self.stage.store.reserve(next(self.ids), key_id, limits, Demand()))
            if isinstance(answer, Granted):
                self.run(self.stage.store.settle(answer.reservation, Demand()))
            self.check_used(key_id, limits, answer)
