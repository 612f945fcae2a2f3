"""Full disks, locked and lost databases: nobody is served without a record, and no record is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.stores import database
from proxy.stores.database import is_broken, migrate, open_database, own_cursor
from proxy.stores.ledger import DatabaseLedger
from tests.fakes.ledgers import HASTY, ClockMs, away, opened, rows, running_ledger, settled
from tests.fakes.postgres import PostgresServer, running_postgres
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture
def hasty_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Of which a lock is noticed in 50 ms."""
    monkeypatch.setattr(database, "PATIENCE_S", 0.05)
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres(own_server: PostgresServer) -> Iterator[Engine]:
    engine = open_database(own_server.url, patience_s=1.0)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE exchanges"))
    yield engine
    engine.dispose()


@contextlib.asynccontextmanager
async def refusing(ledger: DatabaseLedger) -> AsyncIterator[None]:
    """An outage that begins before the body and is over after it; what the ledger promises meanwhile."""
    late = None
    with contextlib.suppress(ProxyError):
        late = ledger.open(opened("late"))
        with pytest.raises(ProxyError) as caught:
            await late.durable()
        assert caught.value.kind is STORE_UNAVAILABLE
    await until(lambda: ledger.problem is not None, "the outage is noticed")
    with pytest.raises(ProxyError) as caught:
        ledger.open(opened("refused"))
    assert caught.value.kind is STORE_UNAVAILABLE
    assert caught.value.retry_after_s == 3.0
    if late is not None:
        late.settle(settled(outcome="store_unavailable", status=503))
    yield


async def settles_through(
    ledger: DatabaseLedger, engine: Engine, fail: Callable[[], object], heal: Callable[[], object]
) -> None:
    """A running exchange is settled during the outage, and its row is written when the database is back."""
    running = ledger.open(opened("running"))
    await running.durable()
    away(fail)
    async with refusing(ledger):
        running.settle(settled(outcome="ok"))
        assert ledger.waiting >= 1
        away(heal)
    await until(lambda: ledger.problem is None and ledger.waiting == 0, "it is over")
    await ledger.open(opened("after")).durable()
    written = rows(engine)
    assert written["running"]["outcome"] == "ok"
    assert "refused" not in written
    assert "after" in written
    assert written.get("late", {}).get("outcome", "store_unavailable") == "store_unavailable"


async def test_a_locked_sqlite_file(hasty_sqlite: Engine) -> None:
    locker = sqlite3.connect(hasty_sqlite.url.database or "", isolation_level=None, check_same_thread=False)
    async with running_ledger(hasty_sqlite) as ledger:
        await settles_through(
            ledger, hasty_sqlite, lambda: locker.execute("BEGIN EXCLUSIVE"), lambda: locker.execute("COMMIT")
        )
    locker.close()


async def test_a_full_disk(hasty_sqlite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit on a file's pages fails as a full disk does: `database or disk is full`."""
    limit: list[int] = []
    set_up = database._set_up_sqlite

    def limited(connection: sqlite3.Connection) -> None:
        set_up(connection)
        connection.execute(f"PRAGMA max_page_count = {limit[-1]}")

    monkeypatch.setattr(database, "_set_up_sqlite", limited)
    with sqlite3.connect(hasty_sqlite.url.database or "") as look:
        pages = look.execute("PRAGMA page_count").fetchone()[0]
    look.close()
    hasty_sqlite.dispose()
    limit.append(pages + 2)
    async with running_ledger(hasty_sqlite) as ledger:
        entries = [ledger.open(opened("first"))]
        with contextlib.suppress(ProxyError):
            while len(entries) < 10_000:
                await entries[-1].durable()
                entries.append(ledger.open(opened(f"filling-{len(entries):050}")))
        assert ledger.problem == "OperationalError: database or disk is full"
        for entry in entries:
            entry.settle(settled())
        limit.append(1_000_000)
        hasty_sqlite.dispose()
        await until(lambda: ledger.problem is None and ledger.waiting == 0, "there is room again")
    written = rows(hasty_sqlite)
    assert set(written) == {entry.opened.id for entry in entries}
    assert {row["outcome"] for row in written.values()} == {"ok"}


def terminate(engine: Engine) -> None:
    """End every connection but one; they are ended when this returns."""
    other = engine.execution_options(isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )


@pytest.mark.parametrize("heartbeat_s", [0.02, 60.0])
async def test_connections_that_postgres_ends_are_made_again_and_nobody_is_refused(
    own_postgres: Engine, heartbeat_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_ledger(own_postgres, rhythm=replace(HASTY, heartbeat_s=heartbeat_s)) as ledger:
        running = ledger.open(opened("running"))
        await running.durable()
        for turn in range(3):
            away(lambda: terminate(own_postgres))
            wave = [ledger.open(opened(f"{turn}-{number}")) for number in range(20)]
            await asyncio.gather(*(entry.durable() for entry in wave))
        running.settle(settled())
    assert len(rows(own_postgres)) == 61
    assert rows(own_postgres)["running"]["outcome"] == "ok"
    # tidying up may have been interrupted
    assert [message for message in caplog.messages if "written" in message] == []


@pytest.mark.parametrize(("state", "ends"), [("57P01", True), ("57P05", True), ("57014", False), ("22012", False)])
def test_what_a_server_says_as_it_ends_a_connection(own_postgres: Engine, state: str, ends: bool) -> None:
    """It is read before the end itself, which may come later over a network."""
    with own_cursor(own_postgres) as cursor:
        with pytest.raises(psycopg.Error) as caught:
            cursor.execute(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$")
        assert is_broken(cursor, caught.value) is ends


async def test_connections_that_postgres_ends_because_nothing_was_asked(own_postgres: Engine) -> None:
    def idle_for(limit: str) -> None:
        other = own_postgres.execution_options(isolation_level="AUTOCOMMIT")
        with other.connect() as connection:
            connection.execute(sa.text(f"ALTER ROLE postgres SET idle_session_timeout = {limit}"))
        own_postgres.dispose()

    away(lambda: idle_for("'50ms'"))
    async with running_ledger(own_postgres, rhythm=replace(HASTY, heartbeat_s=60.0)) as ledger:
        for number in range(3):
            await ledger.open(opened(f"x{number}")).durable()
            await until(lambda: away(lambda: connections(own_postgres)) == 0, "its connections are ended")
    away(lambda: idle_for("0"))
    assert len(rows(own_postgres)) == 3


def connections(engine: Engine) -> int:
    """How many there are beside the one that asks."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(engine.url.render_as_string(hide_password=False).replace("+psycopg", "")) as connection:
        return int(connection.execute(question).fetchall()[0][0])


async def test_a_postgres_that_was_started_again_some_time_ago(
    own_postgres: Engine, own_server: PostgresServer
) -> None:
    async with running_ledger(own_postgres, rhythm=replace(HASTY, heartbeat_s=60.0)) as ledger:
        await ledger.open(opened("before")).durable()
        away(own_server.stop)
        away(own_server.start)
        wave = [ledger.open(opened(f"x{number}")) for number in range(20)]
        await asyncio.gather(*(entry.durable() for entry in wave))
        assert ledger.problem is None
    assert len(rows(own_postgres)) == 21


async def test_a_postgres_that_is_stopped_and_started(own_postgres: Engine, own_server: PostgresServer) -> None:
    async with running_ledger(own_postgres) as ledger:
        await settles_through(ledger, own_postgres, own_server.stop, own_server.start)


async def test_a_postgres_that_accepts_and_never_answers(own_postgres: Engine, own_server: PostgresServer) -> None:
    """Its kernel still acknowledges: no timeout of the network notices."""
    async with running_ledger(own_postgres) as ledger:
        await settles_through(ledger, own_postgres, own_server.freeze, own_server.thaw)


async def test_a_table_that_somebody_locked(own_postgres: Engine) -> None:
    with contextlib.ExitStack() as stack:
        locker = away(lambda: stack.enter_context(own_postgres.connect()))

        def lock() -> None:
            locker.execute(sa.text("LOCK TABLE exchanges IN ACCESS EXCLUSIVE MODE"))

        async with running_ledger(own_postgres) as ledger:
            await settles_through(ledger, own_postgres, lock, locker.rollback)


async def test_a_database_that_never_was_there(tmp_path: Path) -> None:
    engine = away(lambda: open_database(f"sqlite:///{tmp_path / 'missing' / 'ledger.db'}"))
    async with running_ledger(engine) as ledger:
        await until(lambda: ledger.problem is not None, "it is noticed without a row")
        with pytest.raises(ProxyError):
            ledger.open(opened("a"))
    engine.dispose()


async def test_a_wait_that_takes_too_long_is_given_up(hasty_sqlite: Engine) -> None:
    locker = sqlite3.connect(hasty_sqlite.url.database or "", isolation_level=None)
    async with running_ledger(hasty_sqlite, durable_s=0.01) as ledger:
        await until(lambda: ledger.problem is None and ledger.waiting == 0, "it runs")
        locker.execute("BEGIN EXCLUSIVE")
        entry = ledger.open(opened("a"))
        with pytest.raises(ProxyError):
            await entry.durable()
        entry.settle(settled(outcome="store_unavailable"))
        locker.execute("COMMIT")
    locker.close()
    assert rows(hasty_sqlite)["a"]["outcome"] == "store_unavailable"


async def test_closing_tells_how_many_rows_are_lost(hasty_sqlite: Engine) -> None:
    locker = sqlite3.connect(hasty_sqlite.url.database or "", isolation_level=None)
    ledger = DatabaseLedger(hasty_sqlite, "w", clock_ms=ClockMs(), on_commit=lambda _s, _r: None, rhythm=HASTY)
    ledger.start()
    await ledger.open(opened("first")).durable()
    locker.execute("BEGIN EXCLUSIVE")
    for number in range(3):
        ledger.open(opened(f"x{number}")).settle(settled())
    assert ledger.waiting == 3
    assert await ledger.close(0.2) == 3
    await until(lambda: not ledger.writer._thread.is_alive(), "the thread gives up")
    locker.execute("COMMIT")
    locker.close()
    assert set(rows(hasty_sqlite)) == {"first"}


async def test_what_was_settled_meanwhile_does_not_wait_for_the_next_beat(
    hasty_sqlite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else wakes the thread behind an outage: no exchange may come for long."""

    def full(_rows: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with running_ledger(hasty_sqlite, rhythm=replace(HASTY, heartbeat_s=3600.0)) as ledger:
        entries = [ledger.open(opened(f"sl_{number}")) for number in range(10)]
        await asyncio.gather(*[entry.durable() for entry in entries])
        with monkeypatch.context() as outage:
            outage.setattr(ledger.writer, "_upsert", full)
            entries[0].settle(settled())
            await until(lambda: ledger.problem is not None, "the outage is noticed")
            for entry in entries[1:]:
                entry.settle(settled())
            await until(ledger.writer._wakes.empty, "the wakes are heeded")
        await until(lambda: not ledger.waiting, "all rows")
