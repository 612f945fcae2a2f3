"""`kill -9`: whatever was durable is there."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from proxy.stores.database import open_database
from proxy.stores.ledger import DatabaseLedger
from tests.fakes.forking import context
from tests.fakes.ledgers import opened, rows, settled

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from sqlalchemy import Engine

KILLS = 20


def write_for_ever(ledger_url: str, name: str, out: Connection) -> None:
    """A worker of its own: it tells of each row once that is durable."""
    asyncio.run(_write(ledger_url, name, out))


async def _write(ledger_url: str, name: str, out: Connection) -> None:
    ledger = DatabaseLedger(open_database(ledger_url), name, clock_ms=lambda: 0, on_commit=lambda _rows, _s: None)
    ledger.start()
    await asyncio.gather(*(_client(ledger, f"{name}-{number}", out) for number in range(20)))


async def _client(ledger: DatabaseLedger, name: str, out: Connection) -> None:
    for number in range(1_000_000):
        entry = ledger.open(opened(f"{name}-{number}"))
        await entry.durable()
        os.write(out.fileno(), f"{name}-{number}\n".encode())
        if number % 2:
            entry.settle(settled())


def test_what_was_durable_survives_being_killed(engine: Engine, ledger_url: str) -> None:
    seen: list[str] = []
    for turn in range(KILLS):
        ours, theirs = context().Pipe(duplex=False)
        child = context().Process(target=write_for_ever, args=(ledger_url, f"w{turn}", theirs))
        child.start()
        theirs.close()
        with ours, open(ours.fileno(), encoding="ascii", closefd=False) as out:
            seen += [out.readline().strip() for _ in range(50 + 7 * turn)]
            child.kill()
            # whole lines alone were seen by anybody
            rest = out.read()
            seen += rest[: rest.rfind("\n") + 1].split()
        child.join()
        assert child.exitcode == -9
    written = rows(engine)
    assert len(seen) == len(set(seen)) > KILLS * 50
    assert "" not in seen
    assert set(seen) - written.keys() == set()
