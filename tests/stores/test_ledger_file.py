"""The file of an SQLite ledger, which others may remove or replace while a proxy writes it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.stores.database import migrate, open_database
from tests.fakes.ledgers import away, opened, rows, running_ledger, settled
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


def fresh(file: Path) -> None:
    engine = open_database(f"sqlite:///{file}")
    migrate(engine)
    engine.dispose()


async def test_a_file_that_was_removed_stops_new_exchanges(at: Engine, tmp_path: Path) -> None:
    """SQLite would go on writing into it, and nobody would ever see those rows."""
    async with running_ledger(at) as ledger:
        for file in tmp_path.iterdir():
            file.unlink()
        await until(lambda: ledger.problem is not None, "the ledger to notice")
        with pytest.raises(ProxyError) as caught:
            ledger.open(opened("late"))
        assert caught.value.kind is STORE_UNAVAILABLE


async def test_a_ledger_put_in_the_place_of_another_is_written(at: Engine, tmp_path: Path) -> None:
    """As from a backup, whose rows are then the ones that count."""
    other = tmp_path / "backup" / "ledger.db"
    other.parent.mkdir()
    away(lambda: fresh(other))
    async with running_ledger(at) as ledger:
        entry = ledger.open(opened("before"))
        await entry.durable()
        for file in tmp_path.glob("ledger.db*"):
            file.unlink()
        shutil.move(other, tmp_path / "ledger.db")
        entry.settle(settled())
        await until(lambda: "before" in rows(at), "the running exchange's row in the ledger that is there now")
        await until(lambda: ledger.problem is None, "the ledger to be well again")
        await ledger.open(opened("after")).durable()
    assert set(rows(at)) == {"before", "after"}
