"""Errors that Redis answers with: one key's foreign value is that key's trouble, and nobody else's."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits
from proxy.stores.redis_link import _is_answer
from tests.fakes.redis import RedisServer, open_store, running_redis
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from proxy.stores.redis import RedisQuotaStore

HOURLY = Limit(Kind.TOKENS, 1000, 3600)
MONTHLY = Limit(Kind.SPEND, 5000, Calendar.MONTH)
LIMITS = Limits((HOURLY, MONTHLY), concurrency=5)
DEMAND = Demand(1, 100, 500)
NAMES = ("tokens:3600:", "spend:month:")
MANY = 12  # more than any circuit's patience


@pytest.fixture
def seen() -> list[tuple[str, str | None]]:
    return []


@pytest.fixture
def opened_store(redis_url: str, seen: list[tuple[str, str | None]]) -> RedisQuotaStore:
    return open_store(redis_url, seen=lambda what, _, error: seen.append((what, error)))


@pytest.fixture
async def store(opened_store: RedisQuotaStore) -> AsyncIterator[RedisQuotaStore]:
    yield opened_store
    await opened_store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def name(store: RedisQuotaStore, what: str) -> str:
    return f"{store._prefix}:{{team}}:{what}"


async def granted(store: RedisQuotaStore, id_: str, key_id: str = "team") -> Granted:
    answer = await store.reserve(id_, key_id, LIMITS, DEMAND)
    assert isinstance(answer, Granted)
    return answer


async def test_slots_that_are_none_refuse_their_key_and_no_other(
    store: RedisQuotaStore, client: Any, seen: list[tuple[str, str | None]], caplog: pytest.LogCaptureFixture
) -> None:
    held = (await granted(store, "exc_held")).reservation
    client.delete(name(store, "slots"))
    client.rpush(name(store, "slots"), "not", "ours")
    with caplog.at_level(logging.WARNING, "sluice.store"):
        for number in range(MANY):
            with pytest.raises(ProxyError) as failure:
                await store.reserve(f"exc_{number}", "team", LIMITS, DEMAND)
            assert failure.value.kind is STORE_UNAVAILABLE
    assert seen.count(("reserve", "ResponseError")) == MANY
    assert ("reserve", "circuit_open") not in seen
    assert {record.getMessage() for record in caplog.records} == {
        "the quota store answers with an error: ResponseError"
    }
    assert not store.is_away
    await granted(store, "exc_other", "team-b")
    await store.renew([held])
    await store.settle(held, Demand(1, 30, 20))
    await until(lambda: not store.unsettled, "withdrawals are delivered")
    assert client.lrange(name(store, "slots"), 0, -1) == [b"not", b"ours"]
    client.delete(name(store, "slots"))
    assert [standing.used for standing in (await granted(store, "exc_after")).stands.standings()] == [130, 520]


async def test_of_many_renewals_one_that_fails_is_counted_and_the_others_are_done(
    store: RedisQuotaStore, client: Any, seen: list[tuple[str, str | None]]
) -> None:
    good, bad = (await granted(store, "exc_1", "team-b")).reservation, (await granted(store, "exc_2")).reservation
    client.delete(name(store, "slots"))
    client.set(name(store, "slots"), "text")
    before = client.zscore(f"{store._prefix}:{{team-b}}:slots", "exc_1")
    for _ in range(MANY):
        await store.renew([bad, good])
        await store.renew([bad])
    assert client.zscore(f"{store._prefix}:{{team-b}}:slots", "exc_1") > before
    assert seen.count(("renew", "ResponseError")) == 2 * MANY
    assert not store.is_away


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "text",
        "1 2 3",
        "1 2 3 4 5 6",
        "1 -2 3 4 5",
        "nan nan nan nan nan",
        "9" * 400 + " 1 1 1 1",
        "1 9999999999999999 1 1 1",
        "\0\xff",
    ],
)
async def test_an_unreadable_window_counts_as_missing(store: RedisQuotaStore, client: Any, foreign: str) -> None:
    first = (await granted(store, "exc_1")).reservation
    for window in NAMES:
        client.set(name(store, window), foreign)
    answer = await granted(store, "exc_2")
    assert [standing.used for standing in answer.stands.standings()] == [100, 500]
    for window in NAMES:
        client.set(name(store, window), foreign)
    await store.settle(answer.reservation, Demand(1, 40, 30))
    await store.renew([first])
    assert [standing.used for standing in (await granted(store, "exc_3")).stands.standings()] == [100, 500]
    assert store.unsettled == 0


async def test_a_list_in_place_of_a_window_or_a_record_is_replaced(store: RedisQuotaStore, client: Any) -> None:
    for what in (*NAMES, "exchange:exc_1"):
        client.rpush(name(store, what), "not ours")
    reservation = (await granted(store, "exc_1")).reservation
    for what in ("exchange:exc_1", *NAMES):
        client.delete(name(store, what))
        client.rpush(name(store, what), "not ours")
    await store.renew([reservation])
    client.set(name(store, "exchange:exc_1"), "no record, either")
    await store.release(reservation)
    await store.settle(reservation, Demand(1, 40, 30))
    assert store.unsettled == 0
    assert [standing.used for standing in (await granted(store, "exc_2")).stands.standings()][1] >= 500


async def test_a_calendar_window_that_cannot_be_read_is_recalled(redis_url: str, client: Any) -> None:
    async def recall(*_: object) -> dict[Limit, Demand]:
        return {MONTHLY: Demand(3, 300, 3000)}

    store = await asyncio.to_thread(open_store, redis_url, recall=recall)
    client.set(name(store, "spend:month:"), "text")
    assert [standing.used for standing in (await granted(store, "exc_1")).stands.standings()] == [100, 3500]
    await store.close()


@pytest.mark.parametrize(
    ("error", "is_answer"),
    [
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), True),
        (ResponseError("ERR user_script:12: attempt to compare nil with number script: 0a, on @user_script:12."), True),
        (ResponseError("ERR Error running script (call to f_0a): @user_script:1: WRONGTYPE Operation against"), True),
        (ResponseError("ERR Error running script (call to f_0a): @user_script: 1: -READONLY You can't write"), False),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), False),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
        (ResponseError("BUSY Redis is busy running a script."), False),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'.", status_code="OOM"), False),
        (ReadOnlyError("You can't write against a read only replica.", status_code="READONLY"), False),
        (ClusterDownError("Hash slot not served", status_code="CLUSTERDOWN"), False),
        (TimeoutError(), False),
        (redis.ConnectionError("reset"), False),
    ],
)
def test_which_errors_are_about_one_call(error: Exception, is_answer: bool) -> None:
    assert _is_answer(error) == is_answer


@pytest.fixture(params=["full", "replica", "forbidden"])
def useless(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server that answers, but does nothing for anybody."""
    settings = {
        "full": ("maxmemory 1", "maxmemory-policy noeviction"),
        "replica": ("replicaof 127.0.0.1 1",),
        "forbidden": ("user default on nopass ~* &* +@all -zadd -set -evalsha -eval",),
    }[request.param]
    with running_redis(settings=settings) as server:
        yield server


async def test_a_server_that_serves_nobody_is_away(useless: RedisServer) -> None:
    seen: list[str | None] = []
    store = await asyncio.to_thread(open_store, useless.url, seen=lambda *call: seen.append(call[2]))
    for number in range(MANY):
        with pytest.raises(ProxyError):
            await store.reserve(f"exc_{number}", "team", LIMITS, DEMAND)
    assert store.is_away
    assert "circuit_open" in seen
    await store.close()
