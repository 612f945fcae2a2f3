"""A Redis that was emptied while exchanges are in flight: calendar windows say what the ledger says, in every order."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits, Reservation
from tests.fakes.redis import RedisServer, open_store, running_redis
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from proxy.stores.redis import RedisQuotaStore

HOURLY = Limit(Kind.TOKENS, 10_000, 3600)
DAILY = Limit(Kind.TOKENS, 10_000, Calendar.DAY)
MONTHLY = Limit(Kind.TOKENS, 10_000, Calendar.MONTH)
LIMITS = Limits((HOURLY, DAILY, MONTHLY))

_looks = itertools.count()


class Ledger:
    """Rows that are open count as reserved, settled ones as used: what `stores/recall.py` adds up."""

    def __init__(self) -> None:
        self.rows = {"exc_of_last_week": Demand(1, 1000)}
        self.asked = 0

    @property
    def tokens(self) -> int:
        return sum(demand.tokens for demand in self.rows.values())

    async def recall(self, _: str, starts_s: Mapping[Limit, int], /) -> Mapping[Limit, Demand]:
        self.asked += 1
        return dict.fromkeys(starts_s, Demand(len(self.rows), self.tokens))


class Stage:
    """A worker's store and the ledger, and Redis behind them."""

    def __init__(self, store: RedisQuotaStore, ledger: Ledger) -> None:
        self.store = store
        self.ledger = ledger

    async def begin(self, id_: str, tokens: int = 500) -> Reservation:
        answer = await self.store.reserve(id_, "team", LIMITS, Demand(1, tokens))
        assert isinstance(answer, Granted)
        self.ledger.rows[id_] = Demand(1, tokens)
        return answer.reservation

    async def end(self, reservation: Reservation, tokens: int) -> None:
        self.ledger.rows[reservation.id] = Demand(1, tokens)
        await self.store.settle(reservation, Demand(1, tokens))

    async def used(self) -> list[int]:
        reservation = await self.store.reserve(f"look_{next(_looks)}", "team", LIMITS, Demand())
        assert isinstance(reservation, Granted)
        await self.store.settle(reservation.reservation, Demand())
        return [standing.used for standing in reservation.stands.standings()]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def opened_store(redis_url: str, ledger: Ledger) -> RedisQuotaStore:
    return open_store(redis_url, recall=ledger.recall)


@pytest.fixture
async def stage(opened_store: RedisQuotaStore, ledger: Ledger) -> AsyncIterator[Stage]:
    yield Stage(opened_store, ledger)
    await opened_store.close()


@pytest.fixture
def forget(redis_url: str, opened_store: RedisQuotaStore) -> Iterator[Callable[[], object]]:
    """Empty Redis of what this test put there."""
    with redis.Redis.from_url(redis_url) as client:
        client.ping()
        yield lambda: [client.delete(name) for name in client.scan_iter(f"{opened_store._prefix}:*")]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


ORDERS = sorted(set(itertools.permutations(["recall", "renew", "end more", "end less", "release"])))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(word.replace(" ", "_") for word in order))
async def test_no_order_of_events_loses_or_doubles_a_budget(
    stage: Stage, forget: Callable[[], object], order: tuple[str, ...]
) -> None:
    more, less, silent = [await stage.begin(name) for name in ("exc_more", "exc_less", "exc_silent")]
    forget()
    for event in order:
        if event == "recall":
            assert (await stage.used())[1:] == [stage.ledger.tokens] * 2
        elif event == "renew":
            await stage.store.renew([more, less, silent])
        elif event == "release":
            await stage.store.release(less)
        elif event == "end more":
            await stage.end(more, 800)
        else:
            await stage.end(less, 20)
    assert (await stage.used())[1:] == [1000 + 800 + 20 + 500] * 2
    await stage.end(silent, 1)
    assert await stage.used() == [800 + 20 + 1, *[1000 + 800 + 20 + 1] * 2]
    assert stage.ledger.asked == 2


async def test_the_first_settlement_after_a_flush_leaves_the_ledger_to_be_asked(
    stage: Stage, forget: Callable[[], object]
) -> None:
    reservation = await stage.begin("exc_1")
    forget()
    await stage.end(reservation, 30)
    await stage.store.renew([await stage.begin("exc_2")])
    assert await stage.used() == [530, 1530, 1530]


async def test_what_ended_before_a_recall_and_is_told_after_it_is_not_corrected_again(server: RedisServer) -> None:
    """The ledger knew already what it used. Another worker was the first to ask."""
    ledger, options = Ledger(), {"prefix": "shared"}
    ahead_s = [0.0]
    first = Stage(
        await asyncio.to_thread(
            open_store, server.url, recall=ledger.recall, clock=lambda: time.monotonic() + ahead_s[0], **options
        ),
        ledger,
    )
    other = Stage(await asyncio.to_thread(open_store, server.url, recall=ledger.recall, **options), ledger)
    ended, going_on = [await first.begin(name) for name in ("exc_ended", "exc_going_on")]
    server.stop()
    await first.end(ended, 20)
    with pytest.raises(ProxyError):  # its withdrawal was reserved nowhere, and takes nothing back
        await first.store.reserve("exc_lost", "team", LIMITS, Demand(1, 5000))
    assert first.store.unsettled == 2
    server.start()
    assert (await other.used())[1:] == [1520, 1520]
    ahead_s[0] += 11  # past the pause of the circuit
    await until(lambda: not first.store.unsettled, "both are told")
    assert (await other.used())[1:] == [1520, 1520]
    await first.end(going_on, 700)
    assert (await other.used())[1:] == [1720, 1720]
    await first.store.close()
    await other.store.close()


async def test_nothing_is_taken_below_zero_of_a_window_that_knows_less(
    stage: Stage, forget: Callable[[], object]
) -> None:
    """A row that the ledger had not written when it was asked: its correction takes what there is, and no more."""
    reservation = await stage.begin("exc_unwritten", 900)
    forget()
    stage.ledger.rows.clear()
    assert await stage.used() == [0, 0, 0]
    await stage.store.settle(reservation, Demand(1, 100))
    assert await stage.used() == [100, 0, 0]


async def test_a_redis_that_is_emptied_during_a_recall_is_told_again(
    stage: Stage, forget: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = stage.store._link.ask
    restored = 0

    async def ask_and_forget(call: Any) -> Any:
        nonlocal restored
        answer = await ask(call)
        if call.script.name == "restore":
            restored += 1
            if restored < 3:
                await asyncio.to_thread(forget)
        return answer

    monkeypatch.setattr(stage.store._link, "ask", ask_and_forget)
    await stage.begin("exc_1")
    assert restored == 3
    assert await stage.used() == [500, 1500, 1500]


async def test_a_redis_that_keeps_nothing_refuses(
    stage: Stage, forget: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = stage.store._link.ask

    async def ask_and_forget(call: Any) -> Any:
        answer = await ask(call)
        await asyncio.to_thread(forget)
        return answer

    monkeypatch.setattr(stage.store._link, "ask", ask_and_forget)
    with pytest.raises(ProxyError) as failure:
        await stage.begin("exc_1")
    assert failure.value.kind is STORE_UNAVAILABLE
    assert stage.ledger.asked == 3
