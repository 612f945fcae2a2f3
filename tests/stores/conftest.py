"""Both databases for every test of the stores that asks for `ledger_url`; without PostgreSQL's wheel, SQLite alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.stores.database import migrate, open_database
from tests.fakes.postgres import fresh_database, shared_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


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
