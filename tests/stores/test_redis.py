"""What the store on Redis promises beyond the contract of all stores: lost answers, expiry, one slot, the ledger."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from msgspec.structs import replace

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits, Refused
from proxy.core.quota_windows import calendar_bounds_s
from proxy.stores.redis_client import open_client
from tests.fakes.redis import open_store
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from proxy.stores.redis import RedisQuotaStore

TOKENS = Limit(Kind.TOKENS, 1000, 3600)
MONTHLY = Limit(Kind.SPEND, 5000, Calendar.MONTH, "gpt-*")
LIMITS = Limits((Limit(Kind.REQUESTS, 10, 60), TOKENS, MONTHLY), concurrency=2)
DEMAND = Demand(1, 100, 500)

_looks = itertools.count()


@pytest.fixture
def opened_store(redis_url: str) -> RedisQuotaStore:
    return open_store(redis_url)


@pytest.fixture
async def store(opened_store: RedisQuotaStore) -> AsyncIterator[RedisQuotaStore]:
    yield opened_store
    await opened_store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


async def used(store: RedisQuotaStore, limits: Limits = LIMITS) -> list[int]:
    answer = await store.reserve(f"look_{next(_looks)}", "team", Limits(limits.windows), Demand())
    assert isinstance(answer, Granted)
    await store.settle(answer.reservation, Demand())
    return [standing.used for standing in answer.stands.standings()]


async def granted(store: RedisQuotaStore, id_: str) -> Granted:
    answer = await store.reserve(id_, "team", LIMITS, DEMAND)
    assert isinstance(answer, Granted)
    return answer


async def test_everything_of_a_key_expires_and_lies_in_one_slot(store: RedisQuotaStore, client: Any) -> None:
    for number, key_id in enumerate(("team", "}", "{}", "a{b}c", "{", "\N{SNOWMAN} \n")):
        answer = await store.reserve(f"exc_{number}", key_id, LIMITS, DEMAND)
        assert isinstance(answer, Granted)
        await store.renew([answer.reservation])
        if number:
            await store.settle(answer.reservation, DEMAND)
    names = list(client.scan_iter(f"{store._prefix}:*"))
    assert len(names) == 6 * 4 + 1
    assert all(client.ttl(name) > 0 for name in names)
    tags = {name.split(b"{")[1].split(b"}")[0] for name in names}
    assert len(tags) == 6
    assert b"" not in tags


async def test_a_repeated_reservation_is_charged_once(store: RedisQuotaStore) -> None:
    first, second = await granted(store, "exc_1"), await granted(store, "exc_1")
    assert first.reservation == second.reservation
    assert await used(store) == [1, 100, 500]


async def test_a_reservation_that_arrives_after_its_withdrawal_is_none(store: RedisQuotaStore) -> None:
    lost = (await granted(store, "exc_1")).reservation
    store._withdraw(replace(lost, buckets=()))
    await until(lambda: not store.unsettled, "the withdrawal is delivered")
    assert await used(store) == [0, 0, 0]
    with pytest.raises(ProxyError) as failure:
        await store.reserve("exc_1", "team", LIMITS, DEMAND)
    assert failure.value.kind is STORE_UNAVAILABLE
    assert await used(store) == [0, 0, 0]


async def test_a_flushed_redis_counts_what_was_really_used(store: RedisQuotaStore, client: Any) -> None:
    """And never takes from others what it had not counted."""
    lost = [(await granted(store, f"exc_{number}")).reservation for number in range(2)]
    client.delete(*client.scan_iter(f"{store._prefix}:*"))
    other = (await granted(store, "exc_other")).reservation
    await store.settle(lost[0], Demand(1, 30, 20))
    assert await used(store) == [2, 130, 520]
    await store.renew([lost[1]])
    assert await used(store) == [3, 230, 1020]
    assert isinstance(await store.reserve("exc_more", "team", LIMITS, DEMAND), Refused)
    await store.settle(lost[1], Demand(1, 10, 10))
    await store.settle(other, Demand(1, 1, 1))
    assert await used(store) == [3, 41, 31]


async def test_windows_of_the_calendar_are_recalled_from_the_ledger(redis_url: str) -> None:
    asked: list[tuple[str, Mapping[Limit, int]]] = []
    answered = asyncio.Event()

    async def recall(key_id: str, starts: Mapping[Limit, int]) -> Mapping[Limit, Demand]:
        asked.append((key_id, starts))
        await answered.wait()
        return {MONTHLY: Demand(7, 700, 4000)}

    store = await asyncio.to_thread(open_store, redis_url, recall=recall)
    both = asyncio.gather(*(store.reserve(f"exc_{number}", "team", LIMITS, DEMAND) for number in range(3)))
    await until(lambda: asked, "the ledger is asked")
    answered.set()
    answers = await both
    assert [type(answer) for answer in answers].count(Granted) == 2
    assert [(key_id, list(starts)) for key_id, starts in asked] == [("team", [MONTHLY])]
    assert asked[0][1][MONTHLY] == calendar_bounds_s(Calendar.MONTH, int(time.time()))[0]
    assert await used(store) == [2, 200, 5000]
    assert len(asked) == 1
    await store.close()


async def test_a_ledger_that_cannot_tell_is_a_store_that_is_away(redis_url: str) -> None:
    async def recall(key_id: str, starts: Mapping[Limit, int]) -> Mapping[Limit, Demand]:
        raise OSError("the ledger is away")

    store = await asyncio.to_thread(open_store, redis_url, recall=recall)
    with pytest.raises(ProxyError) as failure:
        await store.reserve("exc_1", "team", LIMITS, DEMAND)
    assert failure.value.kind is STORE_UNAVAILABLE
    assert isinstance(await store.reserve("exc_2", "team", Limits((TOKENS,)), DEMAND), Granted)
    await store.close()


async def test_calls_are_seen_with_their_time(redis_url: str) -> None:
    seen: list[tuple[str, float, str | None]] = []
    store = await asyncio.to_thread(open_store, redis_url, seen=lambda *call: seen.append(call))
    reservation = (await granted(store, "exc_1")).reservation
    await store.renew([reservation])
    await store.settle(reservation, DEMAND)
    assert [(operation, error) for operation, _, error in seen] == [
        ("reserve", None),
        ("renew", None),
        ("settle", None),
    ]
    assert all(0 < seconds < 1 for _, seconds, _ in seen)
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@h/0?no_such_option=1",
        "redis://u:secret@h:port",
        "redis+sentinel://u:secret@h:1,h:2",
        "redis+sentinel://u:secret@h:1/service/database",
        "redis+sentinel://u:secret@/service",
        "redis+cluster://u:secret@h:1,h:secret",
        "redis+cluster://u:secret@h:1?no_such_option=1",
        "http://u:secret@h",
    ],
)
def test_a_bad_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="Redis") as failure:
        open_client(url, connections=1)
    assert "secret" not in str(failure.value)


def test_urls_keep_what_they_say() -> None:
    client, _ = open_client("rediss://user:pass@host:1234/3?ssl_cert_reqs=none", connections=5)
    known = client.connection_pool.connection_kwargs  # type: ignore[union-attr]  # a single server has one pool
    assert {name: known[name] for name in ("host", "port", "db", "username", "password")} == {
        "host": "host",
        "port": 1234,
        "db": 3,
        "username": "user",
        "password": "pass",
    }
    service, [sentinel] = open_client(
        "rediss+sentinel://user:pass@a:1,[::1]:2,c/svc/4?sentinel_password=other", connections=5
    )
    pool: Any = service.connection_pool  # type: ignore[union-attr]  # likewise
    assert (pool.service_name, pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == ("svc", 4, "pass")
    places = [one.connection_pool.connection_kwargs for one in sentinel.sentinels]
    assert [(place["host"], place["port"], place["password"]) for place in places] == [
        ("a", 1, "other"),
        ("::1", 2, "other"),
        ("c", 26379, "other"),
    ]
