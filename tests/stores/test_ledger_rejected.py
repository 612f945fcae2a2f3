"""Rows that the database does not take: each is dropped and told of, and stops no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.stores.base import LedgerProblem
from proxy.stores.database import migrate, open_database
from proxy.stores.ledger import DatabaseLedger
from tests.fakes.ledgers import HASTY, ClockMs, away, opened, rows, running_ledger, settled
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from proxy.stores.ledger import LedgerEntry

# no column holds it
BAD_MS = 10**30


async def refused(entry: LedgerEntry) -> None:
    with pytest.raises(ProxyError) as caught:
        await entry.durable()
    assert caught.value.kind is STORE_UNAVAILABLE


def started(engine: Engine, durable_s: float = 5.0) -> DatabaseLedger:
    ledger = DatabaseLedger(
        engine, "w", clock_ms=ClockMs(), on_commit=lambda _s, _r: None, rhythm=HASTY, durable_s=durable_s
    )
    ledger.start()
    return ledger


async def test_a_row_that_cannot_be_written_stops_no_other(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    ledger = started(engine, durable_s=2 * LONG_S)
    entries = [ledger.open(opened(f"x{number}")) for number in range(40)]
    bad = [ledger.open(opened(f"bad-{number}", started_ms=BAD_MS, model="secret")) for number in range(2)]
    entries += [ledger.open(opened(f"y{number}")) for number in range(40)]
    async with asyncio.timeout(LONG_S):  # less than a row is waited for
        await asyncio.gather(*map(refused, bad), *(entry.durable() for entry in entries))
        await refused(bad[0])
    assert ledger.problem is None
    for entry in [*bad, *entries]:
        entry.settle(settled())
    await until(lambda: ledger.waiting == 0, "all others are written")
    assert await ledger.close(5) == 2, "what is lost is counted"
    assert set(rows(engine)) == {entry.opened.id for entry in entries}
    assert {row["outcome"] for row in rows(engine).values()} == {"ok"}
    assert len(caplog.messages) == 2, "each is told of once"
    assert bad[1].opened.id in caplog.text
    assert "secret" not in caplog.text


async def test_a_settlement_that_the_database_does_not_take_leaves_the_row_open(engine: Engine) -> None:
    """Somebody has narrowed a column: the exchange is charged as reserved when this worker is gone."""

    def narrow() -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE UNIQUE INDEX narrow ON exchanges (cost_nano_usd)"))

    away(narrow)
    ledger = started(engine)
    entries = [ledger.open(opened(f"x{number}")) for number in range(3)]
    await asyncio.gather(*(entry.durable() for entry in entries))
    for entry, cost in zip(entries, (1, 1, 2), strict=True):
        entry.settle(settled(cost_nano_usd=cost))
    await until(lambda: ledger.waiting == 0, "all that can be is written")
    assert ledger.problem is None
    assert await ledger.close(5) == 1
    written = rows(engine)
    assert [written[f"x{number}"]["cost_nano_usd"] for number in range(3)] == [1, None, 2]
    assert written["x1"]["ended_ms"] is None


async def test_rejected_rows_make_room(engine: Engine) -> None:
    """Of those who are unfinished at once."""
    ledger = DatabaseLedger(
        engine, "w", clock_ms=ClockMs(), on_commit=lambda _s, _r: None, rhythm=HASTY, max_unfinished=2
    )
    ledger.start()
    for number in range(5):
        bad = ledger.open(opened(f"bad-{number}", started_ms=BAD_MS))
        await refused(bad)
        bad.settle(settled())
    await ledger.close(5)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_postgres_that_cannot_hold_every_text_is_refused(postgres_url: str, encoding: str) -> None:
    name = f"in_{encoding.lower()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
        engine = open_database(postgres_url.replace("/postgres?", f"/{name}?"))
        with pytest.raises(LedgerProblem, match=f"the encoding {encoding}: it must be created with UTF8"):
            migrate(engine)
        engine.dispose()
        connection.execute(f"DROP DATABASE {name}".encode())


async def test_what_the_client_would_send_in_is_always_utf8(
    engine: Engine, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    other = away(lambda: open_database(ledger_url))
    async with running_ledger(other) as ledger:
        await ledger.open(opened("a", model="模型")).durable()
    assert rows(engine)["a"]["model"] == "模型"
    away(other.dispose)
