"""Redis as a cluster of three, and behind Sentinel with a failover."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import RedisCluster

from proxy.core.errors import ProxyError
from proxy.core.quota import Demand, Granted, Kind, Limit, Limits, Refused
from tests.fakes.redis import RedisServer, open_store, running_cluster, running_redis
from tests.fakes.waiting import until, until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from proxy.stores.redis import RedisQuotaStore

LIMITS = Limits((Limit(Kind.TOKENS, 100, 3600), Limit(Kind.REQUESTS, 100, 60)), concurrency=3)
TIMEOUT_S = 5.0  # of a store that is there: a busy machine may keep it waiting
KEYS = tuple(f"team-{number}" for number in range(12))


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with running_cluster() as servers:
        yield servers


@contextlib.asynccontextmanager
async def opened(url: str, timeout_s: float) -> AsyncIterator[RedisQuotaStore]:
    store = await asyncio.to_thread(open_store, url, timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()


async def answers(store: RedisQuotaStore, name: str) -> list[Granted | Refused | BaseException]:
    asked = (store.reserve(f"{name}_{key_id}", key_id, LIMITS, Demand(1, 60)) for key_id in KEYS)
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_a_cluster_serves_keys_of_all_its_nodes(cluster: list[RedisServer]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in cluster[:2])
    async with opened(url, TIMEOUT_S) as store:
        first = await answers(store, "first")
        reservations = [answer.reservation for answer in first if isinstance(answer, Granted)]
        assert len(reservations) == len(KEYS)
        assert all(isinstance(answer, Refused) for answer in await answers(store, "second"))
        held = await asyncio.to_thread(lambda: [dbsize(server) for server in cluster])
        assert all(held)
        assert sum(held) == 4 * len(KEYS)
        for server in cluster:
            await asyncio.to_thread(forget_scripts, server)
        await store.renew(reservations)
        await asyncio.gather(*(store.settle(reservation, Demand(1, 30)) for reservation in reservations))
        assert all(isinstance(answer, Granted) for answer in await answers(store, "third"))


async def test_many_calls_at_once_through_a_fresh_client_lose_none(cluster: list[RedisServer]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    for turn in range(20):
        async with opened(url, TIMEOUT_S) as store:
            found = await answers(store, f"fresh_{turn}")
            assert all(isinstance(answer, Granted) for answer in found), found


async def test_a_cluster_that_was_away_at_first_is_learned_later(cluster: list[RedisServer]) -> None:
    cluster[0].pause()
    try:
        async with opened(f"redis+cluster://127.0.0.1:{cluster[0].port}", 0.5) as store:
            began_s = time.monotonic()
            assert all(isinstance(answer, ProxyError) for answer in await answers(store, "early"))
            assert time.monotonic() - began_s < 10, "all of them wait at once"
            assert store.is_away
            cluster[0].resume()

            async def is_there() -> bool:
                return await store.probe()

            await until_asked(is_there, "the cluster is learned")
            assert not store.is_away
            assert await answers(store, "later")
    finally:
        cluster[0].resume()


async def test_a_cluster_without_one_node_serves_the_others(cluster: list[RedisServer]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in cluster)
    async with opened(url, TIMEOUT_S) as store:
        before = await answers(store, "before")
        assert all(isinstance(answer, Granted) for answer in before)
        cluster[2].stop()
        began_s = time.monotonic()
        lost = [key_id for key_id in KEYS if owner(store, key_id) == cluster[2].port]
        for turn in range(5):
            after = await answers(store, f"after_{turn}")
            assert lost == [
                key_id for key_id, answer in zip(KEYS, after, strict=True) if isinstance(answer, ProxyError)
            ]
            assert sum(isinstance(answer, Refused) for answer in after) == len(KEYS) - len(lost)
        assert time.monotonic() - began_s < 4 * TIMEOUT_S, "most turns waited for nobody"
        reservations = [answer.reservation for answer in before if isinstance(answer, Granted)]
        await store.renew(reservations)
        for reservation in reservations:
            await store.settle(reservation, Demand())
        assert store.unsettled >= len(lost)
        again = await answers(store, "again")
        assert sum(isinstance(answer, Granted) for answer in again) == len(KEYS) - len(lost)
        assert store.is_away
        assert await store.probe(), "and what a call has found out before is known"
        await asyncio.to_thread(take_over, cluster)

        async def is_learned() -> bool:
            """By what is asked for many at once, as nobody else may ask while the circuit is open."""
            await store.renew(reservations)
            return all(owner(store, key_id) == cluster[0].port for key_id in lost)

        await until_asked(is_learned, "another node has the keys of the lost one")

        async def all_are_served() -> bool:
            found = await answers(store, f"served_{time.monotonic()}")
            return not any(isinstance(answer, ProxyError) for answer in found)

        await until_asked(all_are_served, "another node serves the keys of the lost one")
        assert not store.is_away


def owner(store: RedisQuotaStore, key_id: str) -> int:
    client = store._link._client
    assert isinstance(client, RedisCluster)
    node = client.get_node_from_key(f"{store._prefix}:{{{key_id}}}:slots")
    assert node is not None
    return int(node.port)


def take_over(cluster: list[RedisServer]) -> None:
    """The others forget the last node, and the first takes its slots: what an operator does, or a failover."""
    with cluster[0].client() as first, cluster[1].client() as second:
        nodes = [line.split() for line in first.execute_command("CLUSTER", "NODES").decode().splitlines()]
        [lost] = [node[0] for node in nodes if f":{cluster[2].port}@" in node[1]]
        for client in (first, second):
            client.execute_command("CLUSTER", "FORGET", lost)
        first.execute_command("CLUSTER", "ADDSLOTSRANGE", 16384 * 2 // 3, 16383)


def dbsize(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.dbsize())


def forget_scripts(server: RedisServer) -> None:
    with server.client() as client:
        client.script_flush()


async def test_a_failover_of_sentinel_is_followed() -> None:
    with running_redis(tcp=True) as first, running_redis(tcp=True, settings=(follows(first),)) as second:
        watch = (f"sentinel monitor quotas 127.0.0.1 {first.port} 1", "sentinel failover-timeout quotas 3000")
        with running_redis(tcp=True, settings=watch, sentinel=True) as sentinel, sentinel.client() as asked:
            await until(lambda: replicas(asked), "sentinel knows the replica")
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/quotas/0"
            async with opened(url, TIMEOUT_S) as store:
                assert all(isinstance(answer, Granted) for answer in await answers(store, "before"))
                await until(lambda: dbsize(second) == dbsize(first), "the replica knows it, too")
                asked.execute_command("SENTINEL", "FAILOVER", "quotas")
                await until(lambda: leader(asked) == second.port, "the replica leads")
                first.stop()

                async def refused_as_before() -> bool:
                    found = await answers(store, f"after_{time.monotonic()}")
                    return all(isinstance(answer, Refused) for answer in found)

                await until_asked(refused_as_before, "the new leader is asked, and knows what was reserved")


def follows(server: RedisServer) -> str:
    return f"replicaof 127.0.0.1 {server.port}"


def replicas(sentinel: Any) -> bool:
    [found] = sentinel.execute_command("SENTINEL", "REPLICAS", "quotas") or [None]
    return (
        found is not None
        and b"ok" in str(found).encode()
        and "slave" in str(found)
        and "disconnected" not in str(found)
    )


def leader(sentinel: Any) -> int:
    _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "quotas")
    return int(port)
