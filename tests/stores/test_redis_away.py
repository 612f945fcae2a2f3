"""What is known of a Redis that is away: from the first question on, by probes, and at the last try before a stop."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.core.errors import ProxyError
from proxy.core.quota import Demand, Granted, Kind, Limit, Limits
from tests.fakes.redis import RedisServer, free_port, open_store, running_redis
from tests.fakes.waiting import TIMER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.core.quota import Reservation
    from proxy.stores.redis import RedisQuotaStore

LIMITS = Limits((Limit(Kind.TOKENS, 100_000, 3600),), concurrency=1000)
TIMEOUT_S = 0.5
SLACK_S = 10.0  # what a busy machine may add; a call that hangs would take longer

Seen = list[tuple[str, str | None]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


async def opened(url: str, seen: Seen | None = None, **options: Any) -> RedisQuotaStore:
    told = [] if seen is None else seen
    options = {"timeout_s": TIMEOUT_S, "seen": lambda what, _, error: told.append((what, error))} | options
    return await asyncio.to_thread(open_store, url, **options)


async def reserved(store: RedisQuotaStore, id_: str, tokens: int = 10) -> Reservation:
    answer = await store.reserve(id_, "team", LIMITS, Demand(1, tokens))
    assert isinstance(answer, Granted)
    return answer.reservation


async def fail(store: RedisQuotaStore, times: int) -> None:
    for number in range(times):
        with pytest.raises(ProxyError):
            await store.reserve(f"lost_{number}", "team", LIMITS, Demand(1, 10))


@pytest.mark.parametrize("kind", ["redis", "redis+cluster", "redis+sentinel"])
async def test_one_that_is_dead_at_the_start_is_away_after_one_probe(kind: str) -> None:
    seen: Seen = []
    path = "/quotas/0" if kind == "redis+sentinel" else ""
    store = await opened(f"{kind}://127.0.0.1:{free_port()}{path}", seen, timeout_s=5.0)
    assert not store.is_away
    assert not await store.probe()
    assert store.is_away
    assert [what for what, error in seen if error is not None] == ["probe"]
    await store.close()


async def test_one_that_hangs_costs_a_probe_the_timeout_and_is_found_again(server: RedisServer) -> None:
    seen: Seen = []
    store = await opened(server.url, seen)
    server.pause()
    began_s = time.monotonic()
    assert not await store.probe()
    assert TIMEOUT_S - TIMER_S <= time.monotonic() - began_s < TIMEOUT_S + SLACK_S
    assert store.is_away
    server.resume()
    assert await store.probe()
    assert not store.is_away
    assert seen == [("probe", "TimeoutError"), ("probe", None)]
    await store.close()


async def test_the_first_failed_request_shows_as_well(server: RedisServer) -> None:
    store = await opened(server.url)
    server.stop()
    await fail(store, 1)
    assert store.is_away
    server.start()
    await reserved(store, "exc_1")
    assert not store.is_away
    await store.close()


async def test_one_lost_answer_later_is_not_an_outage(server: RedisServer) -> None:
    store = await opened(server.url)
    assert await store.probe()
    server.stop()
    assert not await store.probe()
    assert not store.is_away
    await fail(store, 2)
    assert store.is_away
    await store.close()


async def test_a_probe_is_not_confused_by_a_restart_and_asks_no_open_circuit(server: RedisServer) -> None:
    seen: Seen = []
    store = await opened(server.url, seen)
    assert await store.probe()
    server.stop()
    server.start()
    assert await store.probe()
    server.stop()
    await fail(store, 3)
    assert not await store.probe()
    assert seen[-1] == ("probe", "circuit_open")
    await store.close()


async def test_a_stop_right_after_an_outage_delivers_what_was_kept(server: RedisServer) -> None:
    store, other = await opened(server.url, prefix="shared", timeout_s=5.0), await opened(server.url, prefix="shared")
    held = [await reserved(store, f"exc_{number}") for number in range(450)]
    server.pause()
    # each one that waits keeps its settlement from the first moment on
    settling = [asyncio.create_task(store.settle(reservation, Demand(1, 1))) for reservation in held]
    await asyncio.sleep(0)
    for one in settling:
        one.cancel()
    await asyncio.wait(settling)
    assert store.unsettled == len(held)
    circuit = store._link._circuits[""]
    while not circuit.is_open:
        circuit.failed(None, time.monotonic())
    server.resume()
    await store.close()
    assert store.unsettled == 0
    reservation = await other.reserve("look", "team", LIMITS, Demand())
    assert [standing.used for standing in reservation.stands.standings()] == [len(held)]
    await other.close()


@pytest.mark.parametrize("harm", ["stop", "pause"])
async def test_a_stop_during_an_outage_is_bounded_in_time(server: RedisServer, harm: str) -> None:
    store = await opened(server.url)
    held = [await reserved(store, f"exc_{number}") for number in range(300)]
    getattr(server, harm)()
    await fail(store, 3)
    for reservation in held:
        await store.settle(reservation, Demand(1, 1))
    began_s = time.monotonic()
    await store.close()
    assert time.monotonic() - began_s < TIMEOUT_S + SLACK_S
    assert store.unsettled >= len(held)
