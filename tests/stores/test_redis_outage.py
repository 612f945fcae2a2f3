"""Redis stopped, paused, flushed and restarted under load: no call hangs, nothing is admitted twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import Demand, Granted, Kind, Limit, Limits, Refused, Reservation
from tests.fakes.redis import RedisServer, open_store, running_redis
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from proxy.stores.redis import RedisQuotaStore

LIMITS = Limits((Limit(Kind.TOKENS, 1000, 3600),), concurrency=1000)
TIMEOUT_S = 0.5
# what the event loop of a busy machine may add
SLACK_S = 10.0

_looks = itertools.count()


@dataclass
class Seconds:
    """A clock that a test can put forward, past the pauses of the circuit."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass
class Stage:
    store: RedisQuotaStore
    clock: Seconds
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def pass_pause(self) -> None:
        self.clock.ahead_s += 11


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def server(own_server: RedisServer) -> Iterator[RedisServer]:
    yield own_server
    own_server.resume()
    own_server.stop()
    own_server.start()


@contextlib.asynccontextmanager
async def open_stage(server: RedisServer, **options: Any) -> AsyncIterator[Stage]:
    clock = Seconds()
    asked: list[tuple[str, str | None]] = []
    options = {
        "timeout_s": TIMEOUT_S,
        "clock": clock,
        "seen": lambda what, _, error: asked.append((what, error)),
    } | options
    store = await asyncio.to_thread(open_store, server.url, **options)
    try:
        yield Stage(store, clock, asked)
    finally:
        await store.close()


async def timed(store: RedisQuotaStore, id_: str, tokens: int = 10) -> tuple[Granted | Refused | None, float]:
    """The answer, None for a 503; and how long it took."""
    began_s = time.monotonic()
    try:
        answer = await store.reserve(id_, "team", LIMITS, Demand(1, tokens, 0))
    except ProxyError as error:
        if error.kind is not STORE_UNAVAILABLE or error.retry_after_s is None:
            raise
        return None, time.monotonic() - began_s
    return answer, time.monotonic() - began_s


async def reserved(store: RedisQuotaStore, id_: str, tokens: int = 10) -> Reservation:
    answer, _ = await timed(store, id_, tokens)
    assert isinstance(answer, Granted)
    return answer.reservation


async def used(store: RedisQuotaStore) -> int:
    reservation, _ = await timed(store, f"look_{next(_looks)}", 0)
    assert isinstance(reservation, Granted)
    await store.settle(reservation.reservation, Demand())
    return reservation.stands.standings()[0].used


async def test_a_redis_that_never_answers_costs_the_timeout_and_then_nothing(server: RedisServer) -> None:
    async with open_stage(server) as stage:
        await reserved(stage.store, "exc_before")
        server.pause()
        answers = await asyncio.gather(*(timed(stage.store, f"exc_{number}") for number in range(100)))
        assert [answer for answer, _ in answers] == [None] * 100
        assert max(took_s for _, took_s in answers) < TIMEOUT_S + SLACK_S
        assert stage.store.is_away
        stage.asked.clear()
        _, took_s = await timed(stage.store, "exc_more")
        assert stage.asked == [("reserve", "circuit_open")]
        assert took_s < TIMEOUT_S
        server.resume()
        stage.pass_pause()
        await until(lambda: not stage.store.unsettled, "what was lost is given back")
        assert await used(stage.store) == 10
        assert stage.store._unsettled.dropped == 0


async def test_a_redis_that_is_gone_refuses_and_one_that_is_back_serves(server: RedisServer) -> None:
    async with open_stage(server) as stage:
        open_before = await reserved(stage.store, "exc_before")
        server.stop()
        answers = [await timed(stage.store, f"exc_{number}") for number in range(10)]
        assert [answer for answer, _ in answers] == [None] * 10
        assert sum(error == "circuit_open" for _, error in stage.asked) >= 7
        await stage.store.settle(open_before, Demand(1, 4, 0))
        assert stage.store.unsettled >= 1
        server.start()
        stage.pass_pause()
        await until(lambda: not stage.store.unsettled, "the settlement is delivered")
        assert await used(stage.store) == 4
        assert not stage.store.is_away


async def test_a_restart_between_two_requests_is_not_noticed(server: RedisServer) -> None:
    async with open_stage(server) as stage:
        await asyncio.gather(*(reserved(stage.store, f"exc_{number}") for number in range(20)))
        server.stop()
        server.start()
        await asyncio.gather(*(reserved(stage.store, f"exc_after_{number}") for number in range(20)))
        assert await used(stage.store) == 200


async def test_on_failure_allow_lets_pass_counted_and_marked(server: RedisServer) -> None:
    async with open_stage(server, allow=True) as stage:
        assert not (await reserved(stage.store, "exc_checked")).unchecked
        server.stop()
        passed = [await reserved(stage.store, f"exc_{number}", 10**9) for number in range(5)]
        assert all(reservation.unchecked for reservation in passed)
        assert stage.store.unchecked == 5
        server.start()
        stage.pass_pause()
        await until(lambda: not stage.store.unsettled, "withdrawals are delivered")
        await stage.store.renew(passed)
        for reservation in passed:
            await stage.store.settle(reservation, Demand(1, 10**9, 0))
        assert await used(stage.store) == 0


class Load:
    """Clients that ask for 10 tokens again and again, and keep every second reservation."""

    def __init__(self, store: RedisQuotaStore) -> None:
        self.store = store
        self.admitted = 0
        self.kept = 0
        self.longest_s = 0.0
        self.is_over = False

    async def ask(self, name: int) -> None:
        for number in itertools.count():
            answer, took_s = await timed(self.store, f"exc_{name}_{number}")
            self.longest_s = max(self.longest_s, took_s)
            if isinstance(answer, Granted):
                self.admitted += 1
                if number % 2 or self.kept > 50:
                    await self.store.settle(answer.reservation, Demand())
                else:
                    self.kept += 1
            if self.is_over:
                return
            await asyncio.sleep(0)


@pytest.mark.parametrize("harm", ["flush", "pause", "restart"])
async def test_under_load_nothing_hangs_and_nothing_is_admitted_twice(server: RedisServer, harm: str) -> None:
    async with open_stage(server) as stage:
        load = Load(stage.store)
        asking = [asyncio.create_task(load.ask(name)) for name in range(8)]
        await until(lambda: load.admitted > 50, "some are admitted")
        await asyncio.to_thread(do_harm, server, harm)
        before = load.admitted
        stage.pass_pause()
        await until(lambda: load.admitted > before + 50, "it goes on")
        load.is_over = True
        await asyncio.gather(*asking)
        stage.pass_pause()
        await until(lambda: not stage.store.unsettled, "everything is settled")
        counted = await used(stage.store)
    assert load.longest_s < TIMEOUT_S + SLACK_S
    if harm == "pause":
        assert counted == 10 * load.kept
    else:
        assert counted <= 10 * load.kept


def do_harm(server: RedisServer, harm: str) -> None:
    if harm == "flush":
        server.flush()
    elif harm == "restart":
        server.stop()
        server.start()
    else:
        server.pause()
        time.sleep(3 * TIMEOUT_S)
        server.resume()
