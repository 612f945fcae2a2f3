"""Both databases for every test that asks for `ledger_url`; without PostgreSQL's wheel, SQLite alone. And a Redis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from proxy.stores.database import migrate, open_database
from proxy.stores.memory import MemoryQuotaStore
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.quotas import ManualClock, QuotaStage
from tests.fakes.redis import manual_stage, shared_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from proxy.stores.redis import RedisQuotaStore


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with shared_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database; on PostgreSQL the server is started by the first test that asks."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        with fresh_database(request.getfixturevalue("postgres_url")) as url:
            yield url


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    """A database with its tables."""
    engine = open_database(ledger_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis that tests share; each uses a prefix of its own."""
    with shared_redis() as url:
        yield url


@pytest.fixture
def memory_stage() -> QuotaStage:
    """The embedded store and its clock."""
    clock = ManualClock()
    return QuotaStage(MemoryQuotaStore(clock), clock, clock.advance, lease_ms=math.inf)


@pytest.fixture(params=["memory_stage", "redis_stage"])
def stage(request: pytest.FixtureRequest) -> QuotaStage:
    """Each store of quotas, empty; by the name of the fixture that makes it."""
    made: QuotaStage = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def opened_redis_stage(redis_url: str) -> tuple[QuotaStage, RedisQuotaStore]:
    """Opened before the loop runs, because it reads the scripts' files."""
    return manual_stage(redis_url)


@pytest.fixture
async def redis_stage(opened_redis_stage: tuple[QuotaStage, RedisQuotaStore]) -> AsyncIterator[QuotaStage]:
    """A store on Redis whose scripts see a clock in the test's hand."""
    stage, store = opened_redis_stage
    yield stage
    await store.close()
