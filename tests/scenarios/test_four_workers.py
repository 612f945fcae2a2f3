"""Two processes of two workers each are one proxy to clients: one set of limits, of keys and of figures."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest

from proxy.core.quota import LEASE_MS
from proxy.stores.database import open_database
from proxy.stores.keys import KeyStore
from tests.fakes.client import RecordingClient
from tests.fakes.fleet import scrape, until_ready
from tests.fakes.four_workers import HELD, PACED, PRICE, four_workers
from tests.fakes.outage_clients import written
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.redis import running_redis
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.fakes.four_workers import Came, FourWorkers, Place
    from tests.fakes.served import Served

CROWD: Final = 300
STREAMS: Final = 60
LIVE: Final = 16
CLIENTS: Final = 12
KEEPING: Final = 4  # of these, those that keep their connections
GRACE_MS: Final = 1_000
NEAR_MS: Final = 1_500
SLOTS: Final = "sluice:{slots}:slots"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with shared_postgres() as url:
        yield url


@pytest.fixture
async def four(postgres_url: str, tmp_path: Path) -> AsyncIterator[FourWorkers]:
    with running_redis() as redis, fresh_database(postgres_url) as ledger_url:
        async with four_workers(tmp_path, redis, ledger_url) as found:
            yield found


async def burst(four: FourWorkers, key: str) -> list[Came]:
    """All ask at once, on connections to all four workers, and nobody is answered before all are decided."""
    clients = [*(await four.one_to_each()).values()]
    clients += [await four.client() for _ in range(CROWD - len(clients))]
    asks = [asyncio.get_running_loop().create_task(four.ask(client, key, HELD)) for client in clients]
    await until(lambda: sum(ask.done() for ask in asks) + four.upstream.held == CROWD, "all are decided", LONG_S)
    four.upstream.release()
    came = await asyncio.gather(*asks)
    await asyncio.gather(*(client.close() for client in clients))  # the balancer takes 500
    return came


async def burst_in_a_day(four: FourWorkers, kind: str) -> tuple[str, list[Came]]:
    """The key and the answers of a burst that lies in one day."""
    for key in (kind, f"{kind}-next"):
        day, came = time.time() // 86_400, await burst(four, key)
        if day == time.time() // 86_400:
            return key, came
    raise AssertionError("each burst takes a day")


def reserved_tokens(ledger_url: str, key: str) -> int:
    [reserved] = {row["reserved_tokens"] for row in written(ledger_url).values() if row["key_id"] == key}
    return int(reserved)


async def until_served(four: FourWorkers, key: str) -> list[Came]:
    """What came of each attempt at a stream, until there was a slot for it."""
    came: list[Came] = []
    while not came or came[-1].what == "concurrency_limit_exceeded":
        async with await RecordingClient.connect(four.port) as client:
            came.append(await four.ask(client, key, PACED, stream=True))
    return came


def counted(metrics: list[dict[str, float]], name: str, **labels: str) -> float:
    """The sum of the series with these labels, of all processes."""
    wanted = [f"'{label}': '{value}'" for label, value in labels.items()]
    found = (pair for series in metrics for pair in series.items())
    return sum(
        value for series, value in found if series.startswith(name + "{") and all(one in series for one in wanted)
    )


async def check_figures(four: FourWorkers) -> dict[str, Any]:
    """What clients saw is what `sluice usage` says, and what the metrics of both processes are in sum. The report."""
    metrics: list[dict[str, float]] = []

    async def all_are_counted() -> bool:
        metrics[:] = [(await scrape(proxy))[0] for proxy in four.proxies]
        return counted(metrics, "sluice_requests_total") == sum(map(len, four.came.values()))

    def ended_rows() -> int:
        return sum(row["ended_ms"] is not None for row in written(four.ledger_url).values())

    whole = {key: [one for one in came if one.what == "whole"] for key, came in four.came.items()}
    await until(lambda: ended_rows() == sum(map(len, whole.values())), "all rows are written", LONG_S)
    await until_asked(all_are_counted, "all are counted", LONG_S)
    report: dict[str, Any] = json.loads(await four.sluice("usage", "--by", "key", "--format", "json"))
    by_key = {row["key"]: row for row in report["rows"]}
    assert set(by_key) == set(four.came)
    for key, came in whole.items():
        row, requests = by_key[key], len(came)
        tokens = sum(one.input_tokens for one in came), sum(one.output_tokens for one in came)
        cost_usd = (PRICE["input"] * tokens[0] + PRICE["output"] * tokens[1]) / Decimal(10**6)
        assert (row["requests"], row["input_tokens"], row["output_tokens"]) == (requests, *tokens)
        assert Decimal(row["cost_usd"]) == cost_usd
        assert counted(metrics, "sluice_requests_total", key=key) == len(four.came[key])
        assert counted(metrics, "sluice_requests_total", key=key, outcome="ok") == requests
        assert [counted(metrics, "sluice_tokens_total", key=key, kind=kind) for kind in ("input", "output")] == [
            *tokens
        ]
        assert counted(metrics, "sluice_cost_usd_total", key=key) == pytest.approx(float(cost_usd))
    assert report["open"]["requests"] == report["interrupted"] == 0
    return report


async def test_limits_hold_and_figures_agree(four: FourWorkers) -> None:
    for kind in ("requests", "tokens"):
        key, came = await burst_in_a_day(four, kind)
        assert {one.what for one in came} == {"whole", "insufficient_quota"}
        fits = 50 if kind == "requests" else 10_000 // reserved_tokens(four.ledger_url, key)
        assert sum(one.what == "whole" for one in came) == fits, "not one more, and not one less"
        shares = Counter(await four.places_of(came))
        print(f"\n{CROWD} at once on {kind}: {fits} admitted; by (process, worker): {dict(sorted(shares.items()))}")
        assert len(shares) == 4, "all four workers decided"
    four.upstream.most = 0
    tried = await asyncio.gather(*(until_served(four, "few") for _ in range(STREAMS)))
    print(f"{STREAMS} streams at once for 3 slots: {four.upstream.most} at most, {sum(map(len, tried))} attempts")
    assert [came[-1].what for came in tried] == ["whole"] * STREAMS
    assert four.upstream.most == 3
    print(f"clients, metrics and usage agree: {(await check_figures(four))['total']}")


async def statuses(each: dict[Place, RecordingClient], secret: str) -> set[int]:
    """What the workers say to whoever holds the secret."""
    asked = await asyncio.gather(*(client.ask("GET", "/v1/models", key=secret) for client in each.values()))
    return {answer.status for answer in asked}


async def until_all_say(status: int, each: dict[Place, RecordingClient], secret: str) -> tuple[float, float]:
    """Wait until all workers do: when one did first, and when all did, in seconds of UNIX time."""
    seen_s: list[float] = []

    async def all_say() -> bool:
        said = await statuses(each, secret)
        if status in said:
            seen_s.append(time.time())
        return said == {status}

    await until_asked(all_say, f"{status} from all four workers")
    return seen_s[0], seen_s[-1]


async def test_a_key_made_at_run_time_is_every_workers(four: FourWorkers) -> None:
    each = await four.one_to_each()
    made, made_s = await four.sluice("keys", "create", "alice", "--plan", "few"), time.time()
    known_s = (await until_all_say(200, each, made))[1] - made_s
    assert [(await four.ask(client, made)).what for client in each.values()] == ["whole"] * 4

    store = KeyStore(engine := open_database(four.ledger_url))
    _, second = await asyncio.to_thread(store.rotate, "alice", grace_ms=3_600_000, now_ms=now_ms())
    await until_all_say(200, each, second)
    assert await statuses(each, made) == {200}, "good for an hour more"
    until_ms = now_ms() + GRACE_MS
    _, third = await asyncio.to_thread(store.rotate, "alice", grace_ms=GRACE_MS, now_ms=until_ms - GRACE_MS)
    await until_all_say(200, each, third)
    assert await statuses(each, made) == {401}, "of three the oldest ends at once"
    first_s, old_s = await until_all_say(401, each, second)
    assert first_s * 1000 >= until_ms

    began_s = time.time()
    await asyncio.to_thread(store.revoke, "alice", now_ms())
    revoked_s = (await until_all_say(401, each, third))[1] - began_s
    await asyncio.to_thread(engine.dispose)
    assert [(await four.ask(client, third)).what for client in each.values()] == ["invalid_api_key"] * 4
    assert [(await four.ask(client, "free")).what for client in each.values()] == ["whole"] * 4
    print(
        f"\nknown to {len(each)} workers {known_s:.2f} s after `keys create`; revoked on all in {revoked_s:.2f} s;",
        end=" ",
    )
    print(f"an old secret refused {old_s - until_ms / 1000:.2f} s after its time")


def listens(proxy: Served) -> bool:
    """Whether it still keeps the socket open that its workers share."""
    held = psutil.Process(proxy.pid).net_connections("tcp")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == proxy.port for one in held)


async def load(four: FourWorkers, came: list[Came], over: asyncio.Event, *, keeps: bool) -> None:
    """Ask again and again, on new connections or on one that is kept until an answer says that it closes."""
    while not over.is_set():
        async with await RecordingClient.connect(four.port) as client:
            while not over.is_set():
                came.append(await four.ask(client, "free", PACED, stream=len(came) % 2 == 0))
                if not keeps or came[-1].says_close or came[-1].what == "cut":
                    break


async def test_a_stop_under_load_costs_no_client_an_error(four: FourWorkers) -> None:
    """Clients know the balancer alone. It asks /readyz, and gives what is refused to the other process."""
    loop = asyncio.get_running_loop()
    over, came = asyncio.Event(), list["Came"]()
    live = [loop.create_task(four.ask(await four.client(), "free", HELD, stream=True)) for _ in range(LIVE)]
    clients = [loop.create_task(load(four, came, over, keeps=number < KEEPING)) for number in range(CLIENTS)]
    await until(lambda: len(came) >= 5 * CLIENTS and four.upstream.held == LIVE, "load", LONG_S)
    stopping = four.proxies[0]
    stopping.process.send_signal(signal.SIGTERM)
    await until(lambda: not listens(stopping), "it does not listen any more", LONG_S)
    before = len(came)
    await until(lambda: len(came) >= before + 5 * CLIENTS, "load on the other", LONG_S)
    assert stopping.process.returncode is None, "its streams are not over"
    four.upstream.release()
    finished = Counter(one.what for one in await asyncio.gather(*live))
    assert await stopping.exit_code(LONG_S) == 0
    over.set()
    await asyncio.gather(*clients)
    outcomes, closed = Counter(one.what for one in came), sum(one.says_close for one in came)
    print(f"\n{dict(outcomes)}, {closed} told that the connection closes; live streams: {dict(finished)}")
    assert (outcomes, finished) == ({"whole": len(came)}, {"whole": LIVE})
    assert {process for process, _ in await four.places_of(came)} == {0, 1}


async def begin(four: FourWorkers, client: RecordingClient) -> asyncio.Task[Came] | None:
    """A stream that the upstream holds; None if there is no slot for it."""
    began = asyncio.Event()
    stream = asyncio.get_running_loop().create_task(four.ask(client, "slots", HELD, stream=True, began=began))
    await until(lambda: began.is_set() or stream.done(), "an event or a refusal", LONG_S)
    assert began.is_set() or stream.result().what == "concurrency_limit_exceeded"
    return stream if began.is_set() else None


async def fill(four: FourWorkers) -> dict[Place, asyncio.Task[Came]]:
    """A stream on each of the four workers; there is no fifth slot."""
    begun = {place: await begin(four, client) for place, client in (await four.one_to_each()).items()}
    found = {place: stream for place, stream in begun.items() if stream is not None}
    assert len(found) == 4
    assert await begin(four, await four.client()) is None
    return found


async def test_a_killed_worker_costs_its_own_streams_alone(four: FourWorkers) -> None:
    """Four slots, a stream on each of four workers: that of the killed one is free again when its lease ends."""
    streams = await fill(four)
    dying = four.proxies[0]
    victim = next(iter(dying.workers.values()))
    victim.kill()
    await until(lambda: any(stream.done() for stream in streams.values()), "a stream is cut", LONG_S)
    killed_ms = now_ms()
    [(process, worker)] = [place for place, stream in streams.items() if stream.done()]
    cut = streams.pop((process, worker)).result()
    assert (process, cut.what) == (0, "cut")
    asker = await four.client()
    assert await begin(four, asker) is None, "its slot is still taken"
    with four.redis.client() as client:
        end_ms = client.zscore(SLOTS, cut.id)
        assert killed_ms < end_ms <= killed_ms + LEASE_MS, "its slot comes back by itself"
        near_ms = now_ms() + NEAR_MS
        assert client.zadd(SLOTS, {cut.id: near_ms}, xx=True, ch=True) == 1
    while (late := await begin(four, asker)) is None:
        continue
    late_ms = now_ms() - near_ms
    assert late_ms >= 0, "not before its end"
    assert await begin(four, await four.client()) is None, "one slot came back, not two"
    four.upstream.release()
    ended = await asyncio.gather(late, *streams.values())
    assert [one.what for one in ended] == ["whole"] * 4, "nobody else's stream was cut"

    await until(lambda: len(dying.workers) == 2 and victim.pid not in dying.workers, "another worker", LONG_S)
    await until_ready(dying)
    streams = await fill(four)
    four.upstream.release()
    ended = await asyncio.gather(*streams.values())
    assert [one.what for one in ended] == ["whole"] * 4
    assert {one.remaining for one in ended} == {"94", "93", "92", "91"}, "nine were admitted, of 100"
    print(f"\nlease of {(end_ms - killed_ms) / 1000:.1f} s, cut to {NEAR_MS / 1000} s: admitted {late_ms} ms after it")
