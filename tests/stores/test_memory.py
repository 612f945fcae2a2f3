"""The embedded store: right in every order of events, forgetful of what is over, and filled from the ledger."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, TypeVar

from hypothesis import settings
from sqlalchemy.exc import SQLAlchemyError

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits, Refused
from proxy.core.quota_windows import advanced, calendar_bounds_s
from proxy.stores.memory import MemoryQuotaStore
from tests.fakes.quota_machine import QuotaMachine
from tests.fakes.quotas import START_MS, ManualClock, QuotaStage
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

T = TypeVar("T")

TOKENS = Limit(Kind.TOKENS, 100, 60)
DAILY = Limit(Kind.TOKENS, 1000, Calendar.DAY)
MONTHLY = Limit(Kind.SPEND, 1000, Calendar.MONTH)
LIMITS = Limits((TOKENS, DAILY, MONTHLY), concurrency=2)
SLIDING = Limits((TOKENS,), concurrency=2)
DEMAND = Demand(1, 10, 10)
DAY_MS = 86_400_000


def at_once(answer: Coroutine[object, None, T]) -> T:
    """What a coroutine returns that never waits."""
    try:
        answer.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("the embedded store waited for something")


def store_and_clock() -> tuple[MemoryQuotaStore, ManualClock]:
    clock = ManualClock()
    return MemoryQuotaStore(clock), clock


class MemoryMachine(QuotaMachine):
    """Every state is compared as it counts at that moment: buckets that are over, and whose turn it is, do not."""

    def open_stage(self) -> QuotaStage:
        self.store, clock = store_and_clock()
        return QuotaStage(self.store, clock, clock.advance, lease_ms=math.inf)

    def run(self, answer: Coroutine[object, None, T]) -> T:
        return at_once(answer)

    def snapshot(self) -> object:
        now_ms = self.stage.now_ms()
        return {
            key_id: (
                {name: advanced(counter, counter.window, now_ms) for name, counter in state.counters.items()},
                state.slots.copy(),
                state.released.copy(),
            )
            for key_id, state in self.store._states.items()
        }


MemoryMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestMemoryMachine = MemoryMachine.TestCase


def reserve(
    store: MemoryQuotaStore, key_id: str, limits: Limits = LIMITS, demand: Demand = DEMAND, name: str = "exc_1"
) -> Granted | Refused:
    return at_once(store.reserve(name, key_id, limits, demand))


def use(store: MemoryQuotaStore, key_id: str, limits: Limits = LIMITS, demand: Demand = DEMAND) -> None:
    answer = reserve(store, key_id, limits, demand)
    assert isinstance(answer, Granted)
    at_once(store.settle(answer.reservation, demand))


def look_around(store: MemoryQuotaStore, turns: int) -> None:
    """Let the store look at other keys, as it does while it admits exchanges of one."""
    for _ in range(turns):
        use(store, "busy", Limits())


def test_a_refused_key_leaves_nothing_behind() -> None:
    store, _ = store_and_clock()
    for number in range(100):
        assert isinstance(reserve(store, f"key-{number}", LIMITS, Demand(1, 101)), Refused)
    assert len(store) == 0


def test_keys_of_sliding_windows_are_forgotten_when_these_are_over() -> None:
    store, clock = store_and_clock()
    for number in range(1000):
        use(store, f"key-{number}", SLIDING)
    clock.advance(120_000)
    look_around(store, 2000)
    assert len(store) == 1


def test_memory_stays_bounded_while_ever_new_keys_come() -> None:
    store, clock = store_and_clock()
    most = 0
    for number in range(20_000):
        clock.advance(100)
        use(store, f"key-{number}", SLIDING)
        most = max(most, len(store))
    assert most < 3 * 120_000 / 100  # the keys of two windows, and as many that wait for their turn


def test_keys_used_in_a_running_calendar_window_are_kept_until_it_ends() -> None:
    store, clock = store_and_clock()
    clock.advance(60_000)  # the first of February
    use(store, "monthly")
    clock.advance(20 * DAY_MS)
    look_around(store, 10)
    assert [standing.used for standing in reserve(store, "monthly").stands.standings()] == [10, 10, 20]
    clock.advance(30 * DAY_MS)
    look_around(store, 10)
    assert [standing.used for standing in reserve(store, "monthly").stands.standings()] == [10, 10, 10]


def test_a_process_that_paused_admits_no_more_than_fit() -> None:
    """A laptop that was closed, or SIGSTOP: time passes, nobody renews, and the exchanges go on."""
    store, clock = store_and_clock()
    held = [reserve(store, "paused", SLIDING, name=name) for name in ("exc_1", "exc_2")]
    for pause_ms in (30_000, 3_600_000, 40 * DAY_MS):
        clock.advance(pause_ms)
        look_around(store, 5)
        assert isinstance(reserve(store, "paused", SLIDING), Refused)
    for answer in held:
        assert isinstance(answer, Granted)
        at_once(store.settle(answer.reservation, DEMAND))
    use(store, "paused", SLIDING)
    clock.advance(120_000)
    look_around(store, 5)
    assert len(store) == 1


def test_what_an_exchange_used_is_charged_however_long_its_counter_stood_empty() -> None:
    store, clock = store_and_clock()
    clock.advance(60_000)
    answer = reserve(store, "long", Limits((DAILY,)), Demand(1))
    assert isinstance(answer, Granted)
    for _ in range(100):
        clock.advance(29_999)
        at_once(store.renew([answer.reservation]))
        look_around(store, 1)
    store.release_now(answer.reservation)
    clock.advance(3_600_000)
    look_around(store, 2)
    at_once(store.settle(answer.reservation, Demand(1, 70)))
    assert reserve(store, "long", Limits((DAILY,)), Demand()).stands.standings()[0].used == 70


class Ledger:
    """What a ledger would say, and what it was asked. It answers when it is let."""

    def __init__(self, used: dict[Limit, Demand]) -> None:
        self.used = used
        self.asked: list[dict[Limit, int]] = []
        self.may_answer = asyncio.Event()
        self.problem: SQLAlchemyError | None = None

    async def recall(self, key_id: str, starts_s: Mapping[Limit, int], /) -> Mapping[Limit, Demand]:
        self.asked.append(dict(starts_s))
        await self.may_answer.wait()
        if self.problem is not None:
            raise self.problem
        return self.used


USED_BEFORE = {DAILY: Demand(9, 900, 1), MONTHLY: Demand(30, 5000, 980)}


async def test_calendar_windows_are_filled_from_the_ledger_once() -> None:
    ledger, clock = Ledger(USED_BEFORE), ManualClock()
    ledger.may_answer.set()
    store = MemoryQuotaStore(clock, ledger.recall)
    answer = await store.reserve("exc_1", "team-a", LIMITS, DEMAND)
    assert [standing.used for standing in answer.stands.standings()] == [10, 910, 990]
    answer = await store.reserve("exc_2", "team-a", LIMITS, Demand(1, 1, 20))
    assert isinstance(answer, Refused)
    assert answer.limit == MONTHLY
    starts_s = {
        limit: calendar_bounds_s(calendar, START_MS // 1000)[0]
        for limit, calendar in ((DAILY, Calendar.DAY), (MONTHLY, Calendar.MONTH))
    }
    assert ledger.asked == [starts_s]
    clock.advance(60_000)  # a new day and a new month: their beginning was seen here
    answer = await store.reserve("exc_3", "team-a", LIMITS, DEMAND)
    assert [standing.used for standing in answer.stands.standings()] == [15, 10, 10]
    assert ledger.asked == [starts_s]


async def test_a_key_that_used_nothing_is_asked_for_once_also_when_it_is_refused() -> None:
    ledger = Ledger({})
    ledger.may_answer.set()
    store = MemoryQuotaStore(ManualClock(), ledger.recall)
    for name in ("exc_1", "exc_2"):
        assert isinstance(await store.reserve(name, "team-a", LIMITS, Demand(1, 101)), Refused)
    assert len(ledger.asked) == 1
    await store.reserve("exc_3", "team-a", SLIDING, DEMAND)
    assert len(ledger.asked) == 1


async def test_what_the_ledger_is_to_be_asked_for_is_not_answered_at_once() -> None:
    ledger = Ledger(USED_BEFORE)
    ledger.may_answer.set()
    store = MemoryQuotaStore(ManualClock(), ledger.recall)
    assert store.reserve_now("exc_1", "team-a", LIMITS, DEMAND) is None
    assert (len(store), ledger.asked) == (0, [])
    assert isinstance(store.reserve_now("exc_2", "team-a", SLIDING, DEMAND), Granted)
    assert store.reserve_now("exc_3", "team-a", LIMITS, DEMAND) is None, "of other windows it still knows nothing"
    answer = await store.reserve("exc_3", "team-a", LIMITS, DEMAND)
    assert [standing.used for standing in answer.stands.standings()] == [20, 910, 990]
    at_once_now = store.reserve_now("exc_4", "team-a", LIMITS, Demand(1, 1, 11))
    assert isinstance(at_once_now, Refused)
    assert at_once_now.limit == MONTHLY


async def test_many_first_exchanges_share_one_answer() -> None:
    ledger = Ledger(USED_BEFORE)
    store = MemoryQuotaStore(ManualClock(), ledger.recall)
    limits = Limits((DAILY,))
    first = [asyncio.create_task(store.reserve(f"exc_{n}", "team-a", limits, DEMAND)) for n in range(30)]
    await until(lambda: ledger.asked, "the ledger is asked")
    ledger.may_answer.set()
    answers = await asyncio.gather(*first)
    assert sum(isinstance(answer, Granted) for answer in answers) == 10
    assert len(ledger.asked) == 1
    assert store._recalling == {}


async def test_who_asked_may_leave() -> None:
    ledger = Ledger(USED_BEFORE)
    store = MemoryQuotaStore(ManualClock(), ledger.recall)
    leaving = asyncio.create_task(store.reserve("exc_1", "team-a", LIMITS, DEMAND))
    await until(lambda: len(ledger.asked) == 1, "the ledger is asked")
    waiting = asyncio.create_task(store.reserve("exc_2", "team-a", LIMITS, DEMAND))
    also_leaving = asyncio.create_task(store.reserve("exc_3", "team-a", LIMITS, DEMAND))
    await asyncio.sleep(0)
    also_leaving.cancel()
    leaving.cancel()
    await until(lambda: len(ledger.asked) == 2, "the ledger is asked by another")
    ledger.may_answer.set()
    assert [standing.used for standing in (await waiting).stands.standings()] == [10, 910, 990]
    assert leaving.cancelled()
    assert also_leaving.cancelled()
    assert store._recalling == {}


async def test_a_ledger_that_cannot_be_read_refuses_all_who_wait_and_is_asked_again_by_the_next() -> None:
    ledger = Ledger(USED_BEFORE)
    ledger.problem = SQLAlchemyError("away")
    store = MemoryQuotaStore(ManualClock(), ledger.recall)
    waiting = [asyncio.create_task(store.reserve(f"exc_{n}", "team-a", LIMITS, DEMAND)) for n in range(5)]
    await until(lambda: ledger.asked, "the ledger is asked")
    ledger.may_answer.set()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, ProxyError)
        assert error.kind is STORE_UNAVAILABLE
    assert len(ledger.asked) == 1
    assert len(store) == 0
    ledger.problem = None
    assert isinstance(await store.reserve("exc_9", "team-a", LIMITS, DEMAND), Granted)
