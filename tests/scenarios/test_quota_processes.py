"""Promise 7 across real processes: what many clients ask of many proxies at the same moment never exceeds a limit."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import openai
import pytest

from proxy.config.settings import KeyConfig, PlanConfig, StoreConfig
from proxy.config.values import Secret, SecretUrl
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.outage_clients import written
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.quota_burst import CHAT, MOST_OUTPUT, HoldingUpstream, answer, crowd, request, used_by
from tests.fakes.quota_serving import KEYS, configuration, remaining, serving
from tests.fakes.redis import running_redis
from tests.fakes.running import KEY, running
from tests.fakes.settled import nothing_held
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.quota_burst import Told
    from tests.fakes.served import Served

LIMIT: Final = 10_000
MINUTE_MS: Final = 60_000
# between the clocks of clients and stores, and roundings
CLOCKS_MS: Final = 50.0
ROUNDING_MS: Final = 5.0
STORE_TIMEOUT_S: Final = 20  # the test is about how many are admitted: a slow machine must not refuse for its time


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with shared_postgres() as url:
        yield url


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as server:
        yield server.url


@pytest.fixture
def ledger_url(postgres_url: str) -> Iterator[str]:
    with fresh_database(postgres_url) as url:
        yield url


def store(url: str) -> dict[str, Any]:
    return {"url": url, "timeout": STORE_TIMEOUT_S}


def tokens(row: dict[str, Any]) -> int:
    return int(row["input_tokens"] + row["output_tokens"])


def fits_after_ms(used: int, demand: int) -> int:
    """How long after the end of a minute in which `used` were counted a demand fits: by the definition, bit by bit."""
    return next(
        late_ms
        for late_ms in range(MINUTE_MS + 1)
        if math.ceil(used * (MINUTE_MS - late_ms) / MINUTE_MS) + demand <= LIMIT
    )


def check_refusals(refused: list[Told], reserved: int, minute: int) -> None:
    """Each was told the moment at which its request fits, if nothing is settled before: neither earlier nor later."""
    used = LIMIT // reserved * reserved
    fits_ms = (minute + 1) * MINUTE_MS + fits_after_ms(used, reserved)
    for told in refused:
        assert (told.status, told.code) == (429, "rate_limit_exceeded")
        wait_ms = float(told.retry_after_ms or "")
        assert told.sent_ms + wait_ms <= fits_ms + CLOCKS_MS
        assert told.received_ms + wait_ms >= fits_ms - CLOCKS_MS
        assert told.retry_after == str(math.ceil(wait_ms / 1000))


async def burst(proxies: list[Served], upstream: HoldingUpstream, key: str, count: int) -> tuple[list[Told], int, int]:
    """All ask at once, and nobody is answered before all are decided. With the minutes in which it began and ended."""
    upstream.released.clear()
    async with crowd([proxy.port for proxy in proxies], key, processes=4, each=count // 4) as people:
        began = time.time_ns() // 1_000_000 // MINUTE_MS
        people.go()
        await until(lambda: len(people.refused) + upstream.held == count, "all of them are decided", LONG_S)
        decided = time.time_ns() // 1_000_000 // MINUTE_MS
        upstream.released.set()
        await until(lambda: len(people.told) == count, "all of them are answered", LONG_S)
    return people.told, began, decided


async def burst_in_a_minute(
    proxies: list[Served], upstream: HoldingUpstream, count: int
) -> tuple[str, list[Told], int]:
    """A burst that lies in one minute, so that what fits is a plain number: its key, its answers, the minute."""
    for key_id, key in KEYS.items():
        told, began, decided = await burst(proxies, upstream, key, count)
        if began == decided:
            return key_id, told, decided
    raise AssertionError("each burst takes a minute")


@pytest.mark.parametrize(("shared", "count"), [(True, 500), (False, 200)], ids=["redis", "memory"])
async def test_at_once_no_more_is_admitted_than_fits(
    shared: bool, count: int, redis_url: str, ledger_url: str, tmp_path: Path
) -> None:
    processes = 4 if shared else 1
    async with HoldingUpstream() as upstream:
        config = configuration(
            upstream.url,
            store=store(redis_url) if shared else {"url": "memory://"},
            ledger=ledger_url,
            plan={"tokens": [f"{LIMIT}/minute"]},
        )
        async with serving([config] * processes, tmp_path) as proxies:
            key_id, told, minute = await burst_in_a_minute(proxies, upstream, count)
            admitted = {one.number for one in told if one.status == 200}
            used = sum(used_by(number)["total_tokens"] for number in admitted)

            async def is_settled() -> bool:
                return await remaining(proxies[0].port, "tokens", key=KEYS[key_id]) >= LIMIT - used

            await until_asked(is_settled, "what was reserved is given back but for what was used", LONG_S)
            left = await remaining(proxies[-1].port, "tokens", key=KEYS[key_id])
            is_same_minute = time.time_ns() // 1_000_000 // MINUTE_MS == minute
            await until(lambda: all(ended(row) for row in written(ledger_url).values()), "the rows", LONG_S)
    rows = [row for row in written(ledger_url).values() if row["key_id"] == key_id]
    [reserved] = {row["reserved_tokens"] for row in rows}
    print(
        f"\n{count} at once, {processes} processes: {len(rows)} admitted, reserved {len(rows) * reserved}, used {used}"
    )
    assert len(told) == count
    assert len(rows) == len(admitted) == LIMIT // reserved, "not one more, and not one less"
    assert sum(tokens(row) for row in rows) == used <= LIMIT
    assert left == LIMIT - used or not is_same_minute
    check_refusals([one for one in told if one.status != 200], reserved, minute)


def ended(row: dict[str, Any]) -> bool:
    return row["ended_ms"] is not None


@pytest.mark.parametrize("shared", [True, False], ids=["redis", "memory"])
async def test_retry_after_is_the_moment_at_which_a_request_fits(shared: bool, redis_url: str) -> None:
    """Asked all the time, a quiet key is refused up to the moment it was told, and admitted from then on."""
    url = redis_url if shared else "memory://"
    settings = {"store": StoreConfig(url=SecretUrl(url), timeout=STORE_TIMEOUT_S)}
    keys = (KeyConfig(id="team-a", secret=Secret(KEY), plan="p"),)
    plans = {"p": PlanConfig(tokens=("100/2 seconds",))}
    async with (
        AnsweringUpstream(answer) as upstream,
        running(upstream.url, plans=plans, keys=keys, settings=settings) as proxy,
        await RecordingClient.connect(proxy.port) as client,
    ):
        looks: list[Look] = []

        async def look() -> bool:
            sent_ms = time.monotonic() * 1000
            told = await client.ask("POST", CHAT, request(MOST_OUTPUT))
            wait_ms = told.header("retry-after-ms")
            looks.append(Look(told.status, sent_ms, time.monotonic() * 1000, float(wait_ms) if wait_ms else None))
            return told.status == 200

        assert await look()
        await nothing_held(proxy)  # settled: what was used, not what was reserved
        assert not await look()
        refused = looks[-1]
        assert refused.wait_ms is not None
        del looks[:]
        await until_asked(look, "the window slides on", LONG_S)
    *early, admitted = looks
    print(f"\ntold {refused.wait_ms:.0f} ms, refused {len(early)} times more, admitted after", end=" ")
    print(f"{admitted.received_ms - refused.received_ms:.0f} ms")
    assert all(one.sent_ms <= refused.received_ms + refused.wait_ms + ROUNDING_MS for one in early)
    assert admitted.received_ms >= refused.sent_ms + refused.wait_ms - ROUNDING_MS


class Look(NamedTuple):
    """One answer, its moments by a clock that does not jump, and the wait that was told."""

    status: int
    sent_ms: float
    received_ms: float
    wait_ms: float | None


async def test_a_client_that_waits_as_told_is_served(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """400 at once where some 160 fit: the SDK asks again when it is told to, until all are served."""
    window_s, count, processes = 3, 400, 4
    async with AnsweringUpstream(answer) as upstream:
        plan = {"tokens": [f"{LIMIT}/{window_s} seconds"]}
        config = configuration(upstream.url, store=store(redis_url), ledger=ledger_url, plan=plan)
        async with serving([config] * processes, tmp_path) as proxies, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(sdk(proxy)) for proxy in proxies]
            began_s = time.monotonic()
            answers = await asyncio.gather(*(ask(clients[number % processes], number) for number in range(count)))
            took_s = time.monotonic() - began_s
            await until(lambda: len(settled_rows(ledger_url)) >= count, "the rows", LONG_S)
            refusals = sum(line["outcome"] == "rate_limited" for proxy in proxies for line in proxy.exchanges)
            outcomes = {line["outcome"] for proxy in proxies for line in proxy.exchanges}
    rows = settled_rows(ledger_url)
    used = sum(map(tokens, rows))
    print(f"\n{count} served by {processes} processes in {took_s:.1f} s, {refusals} refusals, used {used}")
    assert answers == [used_by(number)["total_tokens"] for number in range(count)]
    assert used == sum(answers) > LIMIT
    assert outcomes == {"ok", "rate_limited"}
    assert len(upstream.requests) == count
    assert max(used_within(rows, window_s * 1000).values()) <= LIMIT


def used_within(rows: list[dict[str, Any]], window_ms: int) -> Counter[int]:
    """What was used in each bucket of the window, of the exchanges that were certainly reserved in it."""
    found: Counter[int] = Counter()
    for row in rows:
        bucket = row["started_ms"] // window_ms
        if (row["started_ms"] + row["first_byte_ms"]) // window_ms == bucket:
            found[bucket] += tokens(row)
    return found


def settled_rows(url: str) -> list[dict[str, Any]]:
    return [row for row in written(url).values() if row["ended_ms"] is not None]


def sdk(proxy: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY, max_retries=1000, timeout=60)


async def ask(client: openai.AsyncOpenAI, number: int) -> int:
    """The tokens that the answer says were used."""
    found = await client.chat.completions.create(
        model="m",
        max_tokens=MOST_OUTPUT,
        user=str(number),
        messages=[{"role": "user", "content": "Say this is a test"}],
    )
    assert found.usage is not None
    return found.usage.total_tokens
