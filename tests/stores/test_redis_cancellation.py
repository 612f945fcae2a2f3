"""A caller that goes away at any await leaves no broken connection, no slot and nothing reserved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxy.core.quota import Demand, Granted, Kind, Limit, Limits
from tests.fakes.redis import open_store
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.stores.redis import RedisQuotaStore

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

LIMITS = Limits((Limit(Kind.TOKENS, 1000, 3600),), concurrency=1)
TURNS = 40


@pytest.fixture
def opened_store(redis_url: str) -> RedisQuotaStore:
    return open_store(redis_url)


@pytest.fixture
async def store(opened_store: RedisQuotaStore) -> AsyncIterator[RedisQuotaStore]:
    yield opened_store
    await opened_store.close()


def pool_of(store: RedisQuotaStore) -> Any:
    return store._link._client.connection_pool  # type: ignore[union-attr]  # a single server has one


async def cancel_after(work: asyncio.Task[Any], turns: int) -> bool:
    """Cancel after so many turns of the loop, and once more in the next; whether it was still running."""
    for _ in range(turns):
        await asyncio.sleep(0)
    was_running = work.cancel()
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait((work,))
    return was_running


@pytest.mark.parametrize("warm", [True, False])
async def test_reserving_cancelled_at_any_turn(store: RedisQuotaStore, warm: bool) -> None:
    cancelled = 0
    for turns in range(TURNS):
        if not warm:
            await pool_of(store).disconnect()
        work = asyncio.create_task(store.reserve(f"exc_{turns}", "team", LIMITS, Demand(1, 10)))
        cancelled += await cancel_after(work, turns)
        if not work.cancelled():
            answer = work.result()
            assert isinstance(answer, Granted)
            await store.settle(answer.reservation, Demand())
        await until(lambda: not store.unsettled, "what was lost is given back")
        assert not pool_of(store)._in_use_connections
        # the next one on the same connection gets its own answer
        answer = await store.reserve(f"next_{turns}", "team", LIMITS, Demand(1, turns))
        assert isinstance(answer, Granted)
        assert answer.stands.standings()[0].used == turns
        await store.settle(answer.reservation, Demand())
    assert cancelled > 2
    assert len(pool_of(store)._available_connections) <= 3


async def test_settling_cancelled_at_any_turn_is_settled_all_the_same(store: RedisQuotaStore) -> None:
    cancelled = 0
    for turns in range(TURNS):
        answer = await store.reserve(f"exc_{turns}", "team", LIMITS, Demand(1, 20))
        assert isinstance(answer, Granted)
        assert answer.stands.standings()[0].used == 20 + turns
        work = asyncio.create_task(store.settle(answer.reservation, Demand(1, 1)))
        cancelled += await cancel_after(work, turns)
        # a task that is cancelled before its first step has settled nothing, as nobody called it
        if not turns:
            await store.settle(answer.reservation, Demand(1, 1))
        await until(lambda: not store.unsettled, "it is settled")
        assert not pool_of(store)._in_use_connections
    assert cancelled > 2
