"""Transitions of one key's state that the contract of stores does not show."""

from __future__ import annotations

from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits, counter_name
from proxy.core.quota_state import KeyState, counted, prune, refused, release, reserve, settle
from proxy.core.quota_windows import Counter
from tests.fakes.quotas import START_MS

TOKENS = Limit(Kind.TOKENS, 100, 60)
DAILY = Limit(Kind.TOKENS, 1000, Calendar.DAY)
LIMITS = Limits((TOKENS, DAILY))
DEMAND = Demand(1, 10)


def taken(state: KeyState, now_ms: int, name: str = "exc_1") -> Granted:
    answer = reserve(state, name, "team-a", LIMITS, DEMAND, now_ms)
    assert isinstance(answer, Granted)
    return answer


def test_a_reservation_remembers_its_buckets_and_its_demand_as_counted() -> None:
    answer = reserve(KeyState(), "exc_1", "team-a", Limits((DAILY,)), Demand(-5, 10, 2**60), START_MS)
    assert isinstance(answer, Granted)
    assert answer.reservation.demand == Demand(0, 10, 10**15)
    assert answer.reservation.buckets == (START_MS // 86_400_000 * 86_400,)


def test_settling_says_whether_it_was_the_first_time() -> None:
    state = KeyState()
    reservation = taken(state, START_MS).reservation
    assert settle(state, reservation, Demand())
    assert not settle(state, reservation, Demand())


def test_what_a_store_has_lost_is_not_taken_back_below_nothing() -> None:
    state = KeyState()
    reservation = taken(state, START_MS).reservation
    state.counters[counter_name(DAILY)] = Counter(Calendar.DAY, reservation.buckets[1], 4)
    del state.counters[counter_name(TOKENS)]
    state.sheet = None
    assert settle(state, reservation, Demand())
    assert state.counters == {counter_name(DAILY): Counter(Calendar.DAY, reservation.buckets[1], 0)}


def test_a_slot_is_released_while_its_exchange_is_still_to_be_settled() -> None:
    state = KeyState()
    reservation = taken(state, START_MS).reservation
    for _ in range(2):
        release(state, reservation.id)
        assert (state.slots, state.released) == (set(), {"exc_1"})
    assert counted(state)[counter_name(TOKENS)].current == 10
    assert settle(state, reservation, Demand(1, 4))
    assert counted(state)[counter_name(TOKENS)].current == 4
    assert not settle(state, reservation, Demand())
    release(state, reservation.id)
    assert (state.slots, state.released) == (set(), set())


def test_pruning_says_when_to_look_again() -> None:
    state = KeyState()
    assert prune(state, START_MS) == 0
    reservation = taken(state, START_MS).reservation
    assert prune(state, START_MS) == START_MS + 30_000
    release(state, reservation.id)
    assert prune(state, START_MS) == START_MS + 30_000
    settle(state, reservation, DEMAND)
    midnight_ms = (START_MS // 86_400_000 + 1) * 86_400_000
    assert prune(state, START_MS) == midnight_ms + 60_000  # the last minute of the day counts in the next one
    assert prune(state, midnight_ms) == midnight_ms + 60_000
    assert list(state.counters) == [counter_name(TOKENS)]
    assert prune(state, midnight_ms + 60_000) == 0


def test_counters_that_stand_at_nothing_are_forgotten_once_nobody_may_charge_them() -> None:
    state = KeyState()
    reservation = taken(state, START_MS).reservation
    settle(state, reservation, Demand())
    assert len(state.counters) == 2
    assert prune(state, START_MS) == 0
    assert state.counters == {}


def test_an_exchange_in_flight_is_never_forgotten() -> None:
    state = KeyState()
    reservation = taken(state, START_MS).reservation
    year_ms = START_MS + 365 * 86_400_000
    assert prune(state, year_ms) > year_ms
    assert state.slots == {"exc_1"}
    assert len(state.counters) == 2
    assert settle(state, reservation, Demand())


def test_a_refusal_can_be_told_from_counters_of_anywhere() -> None:
    counters = [Counter(60, START_MS // 60_000, 95), Counter(Calendar.DAY, START_MS // 86_400_000 * 86_400, 995)]
    answer = refused(LIMITS, DEMAND, counters, START_MS)
    assert answer.limit == TOKENS  # 95 of 100 fade for three seconds of the next minute; the day is over before
    assert answer.wait_s == 29.877 + 3.158
    assert refused(LIMITS, Demand(1, 101), counters, START_MS)[:2] == (TOKENS, None)
    assert refused(LIMITS, Demand(), counters, START_MS)[:2] == (None, None)
