"""Promise 8: `kill -9` under load loses nothing. Whatever a client saw a byte of is in the ledger, once.

The proxy is killed SLUICE_TEST_ROUNDS times (3 unless that says otherwise), each time at a drawn moment, and started
again on the same ledger.
"""

from __future__ import annotations

import asyncio
import os
import time
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.simulator.server import Simulator
from proxy.stores.database import open_database
from proxy.stores.recovery import DEAD_AFTER_MS, INTERRUPTED, Housekeeping
from tests.fakes.callers import Load
from tests.fakes.ledgers import away, rows
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.running import KEY
from tests.fakes.served import served
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

ROUNDS: Final = int(os.environ.get("SLUICE_TEST_ROUNDS", "3"))
LONGEST_LOAD_S: Final = 0.3
SEED: Final = 8
RESERVED_OUTPUT: Final = 500
PRICE: Final = {"input": 0.15, "output": 0.6}


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with shared_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: its tables are the first proxy's to make."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        with fresh_database(request.getfixturevalue("postgres_url")) as url:
            yield url


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    engine = open_database(ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulator = Simulator()
    await simulator.start()
    yield simulator
    await simulator.close()


def configuration(upstream: str, ledger_url: str) -> dict[str, Any]:
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "upstreams": {"up": {"base_url": upstream, "auth": "none"}},
        "models": {"sim-*": {"price": PRICE, "max_output_tokens": RESERVED_OUTPUT}},
        "keys": [{"id": "team-a", "secret": KEY}],
        "ledger": {"url": ledger_url},
    }


async def killed_under_load(config: dict[str, Any], folder: Path, draw: Random) -> Load:
    """Start a proxy, keep it busy, and kill it at a drawn moment after its first answer."""
    async with served(config, folder) as proxy, asyncio.TaskGroup() as tasks:
        load = Load(proxy.port, KEY, draw)

        def kill() -> None:
            load.is_over = True
            proxy.process.kill()

        tasks.create_task(load.run())
        await asyncio.wait_for(load.begun.wait(), LONG_S)
        asyncio.get_running_loop().call_later(draw.uniform(0, LONGEST_LOAD_S), kill)
        assert await proxy.exit_code() == -9
    return load


def assert_recorded(load: Load, found: dict[str, dict[str, Any]]) -> None:
    """Every exchange of which a client saw a byte has its row, open or settled, and the row says what was."""
    assert load.nameless == 0
    assert len({seen.id for seen in load.seen}) == len(load.seen)
    assert {seen.id for seen in load.seen} - found.keys() == set()
    for seen in load.seen:
        row = found[seen.id]
        assert (row["endpoint"], row["model"], row["streamed"]) == (seen.endpoint, seen.model, seen.streamed)
        assert (row["key_id"], row["upstream"]) == ("team-a", "up")
        assert row["outcome"] != INTERRUPTED
        if row["ended_ms"] is not None and seen.is_whole:
            assert row["status"] == seen.status
            assert row["grade"] == "exact"
            if seen.usage is not None:
                said = seen.usage["prompt_tokens"], seen.usage.get("completion_tokens", 0)
                assert (row["input_tokens"], row["output_tokens"]) == said


def reap(engine: Engine, now_ms: int) -> None:
    """What the next worker does once the lease of the dead ones is over."""
    housekeeping = Housekeeping(engine, "the next worker", lambda: now_ms, None)
    housekeeping.beat()
    while housekeeping.sweep():
        continue
    housekeeping.leave()


def assert_charged_as_reserved(row: dict[str, Any]) -> None:
    assert (row["outcome"], row["grade"]) == (INTERRUPTED, "unknown")
    assert (row["input_tokens"], row["output_tokens"]) == (0, row["reserved_tokens"])
    assert row["cost_nano_usd"] == row["reserved_nano_usd"] > 0
    assert row["reserved_tokens"] >= (0 if row["endpoint"] == "embeddings" else RESERVED_OUTPUT)
    assert row["ended_ms"] >= row["started_ms"]


def still_open(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, row in found.items() if row["ended_ms"] is None}


@pytest.mark.timeout(180 + 10 * ROUNDS)
async def test_killed_under_load_nothing_that_a_client_saw_is_lost(
    engine: Engine, ledger_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    draw = Random(SEED)
    config = configuration(simulator.url, ledger_url)
    found: dict[str, dict[str, Any]] = {}
    left_open: set[str] = set()
    seen = 0
    for _ in range(ROUNDS):
        before = found
        load = await killed_under_load(config, tmp_path, draw)
        found = rows(engine)
        assert_recorded(load, found)
        assert len(load.seen) <= len(found) - len(before) <= load.asked
        # the lease of the one killed before is not over: a restart alone closes nothing
        assert {name for name in left_open if found[name]["outcome"] == INTERRUPTED} == set()
        left_open = still_open(found) - before.keys()
        seen += len(load.seen)
    away(lambda: reap(engine, time.time_ns() // 1_000_000 + 2 * DEAD_AFTER_MS))
    closed = rows(engine)
    assert closed.keys() == found.keys()
    assert still_open(closed) == set()
    interrupted = [row for row in closed.values() if row["outcome"] == INTERRUPTED]
    assert interrupted
    for row in interrupted:
        assert_charged_as_reserved(row)
    assert {name for name in found.keys() - still_open(found) if closed[name] != found[name]} == set()
    print(f"{ROUNDS} kills, {seen} exchanges seen, {len(closed)} rows, {len(interrupted)} interrupted")
