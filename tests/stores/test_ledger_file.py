"""The file of an SQLite ledger, which others may remove or replace while a proxy writes it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.stores.database import migrate, open_database
from proxy.stores.ledger import DatabaseLedger
from tests.fakes.ledgers import HASTY, ClockMs, away, opened, rows, running_ledger, settled
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

REMOVED = "OperationalError: the ledger's file was removed: put it back, or restart to begin a new one"
REPLACED = "OperationalError: the ledger's file was replaced: restart to use the one that is there now"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def at(file: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{file}")
    migrate(engine)
    yield engine
    engine.dispose()


def started(engine: Engine) -> DatabaseLedger:
    ledger = DatabaseLedger(engine, "w", clock_ms=ClockMs(), on_commit=lambda _s, _r: None, rhythm=HASTY)
    ledger.start()
    return ledger


async def refuses(ledger: DatabaseLedger, problem: str) -> None:
    """Now, and after some more tries to write."""
    await until(lambda: ledger.problem is not None, "the ledger to notice")
    retry_s = ledger.writer._retry_s
    await until(lambda: ledger.writer._retry_s > retry_s, "it has tried again")
    assert ledger.problem == problem
    with pytest.raises(ProxyError) as caught:
        ledger.open(opened("late"))
    assert caught.value.kind is STORE_UNAVAILABLE


def check(file: Path) -> str:
    """What SQLite itself says of the file."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.mark.parametrize("also_beside_it", [True, False])
async def test_a_file_that_was_removed_stops_new_exchanges(at: Engine, file: Path, also_beside_it: bool) -> None:
    """SQLite would go on writing into it, and nobody would ever see those rows; nor is an empty one begun."""
    ledger = started(at)
    entry = ledger.open(opened("before"))
    await entry.durable()
    for found in file.parent.glob("ledger.db*") if also_beside_it else [file]:
        found.unlink()
    entry.settle(settled())
    await refuses(ledger, REMOVED)
    for use in (at.connect, at.raw_connection):
        with pytest.raises((sqlite3.Error, sa.exc.OperationalError), match="the ledger's file was removed"):
            away(use)
    assert await ledger.close(0.1) == 1
    assert not file.exists()


async def test_a_row_is_not_durable_where_nobody_will_find_it(at: Engine, file: Path) -> None:
    """Not even before the next sign of life."""
    ledger = DatabaseLedger(at, "w", clock_ms=ClockMs(), on_commit=lambda _s, _r: None)
    ledger.start()
    await ledger.open(opened("before")).durable()
    file.unlink()
    with pytest.raises(ProxyError):
        await ledger.open(opened("late")).durable()
    assert ledger.problem == REMOVED
    await ledger.close(0.1)


async def test_a_file_that_was_put_back_is_written_again(at: Engine, file: Path) -> None:
    async with running_ledger(at) as ledger:
        entry = ledger.open(opened("before"))
        await entry.durable()
        file.rename(file.with_name("aside"))
        entry.settle(settled())
        await refuses(ledger, REMOVED)
        file.with_name("aside").rename(file)
        await until(lambda: ledger.problem is None and ledger.waiting == 0, "the ledger to be well again")
        await ledger.open(opened("after")).durable()
    assert {name: row["outcome"] for name, row in rows(at).items()} == {"before": "ok", "after": None}


@pytest.mark.parametrize("moved_aside", [True, False])
async def test_a_backup_in_the_place_of_a_ledger_is_left_alone_and_used_after_a_restart(
    at: Engine, file: Path, moved_aside: bool
) -> None:
    """The log that stays beside it is the old file's: applied to the backup it would spoil it."""
    backup = file.with_name("backup")
    ledger = started(at)
    for number in range(50):
        ledger.open(opened(f"saved-{number}")).settle(settled())
    await until(lambda: ledger.waiting == 0, "they are written")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM INTO ?", (str(backup),))
    later = [ledger.open(opened(f"later-{number}")) for number in range(500)]
    await later[-1].durable()
    if moved_aside:
        file.rename(file.with_name("aside"))
    shutil.move(backup, file)
    later[0].settle(settled())
    await refuses(ledger, REPLACED)
    await ledger.close(0.1)
    assert check(file) == "ok"
    if moved_aside:
        assert check(file.with_name("aside")) == "ok"

    again = away(lambda: open_database(f"sqlite:///{file}"))
    away(lambda: migrate(again))
    async with running_ledger(again, "the next") as restarted:
        await restarted.open(opened("after")).durable()
    assert set(rows(again)) == {f"saved-{number}" for number in range(50)} | {"after"}
    assert check(file) == "ok"
    away(again.dispose)
