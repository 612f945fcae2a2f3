"""`kill -9`: whatever was durable is there."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.fakes.ledgers import rows

if TYPE_CHECKING:
    from sqlalchemy import Engine

WORKER = """
import asyncio, os, sys
from proxy.stores.database import open_database
from tests.fakes.ledgers import DatabaseLedger, opened, settled

async def client(ledger, name):
    for number in range(1_000_000):
        entry = ledger.open(opened(f"{name}-{number}"))
        await entry.durable()
        os.write(1, f"{name}-{number}\\n".encode())
        if number % 2:
            entry.settle(settled())

async def main():
    ledger = DatabaseLedger(open_database(sys.argv[1]), sys.argv[2], clock_ms=lambda: 0, on_commit=lambda s, r: None)
    ledger.start()
    await asyncio.gather(*(client(ledger, f"{sys.argv[2]}-{n}") for n in range(20)))

asyncio.run(main())
"""
KILLS = 20


def test_what_was_durable_survives_being_killed(engine: Engine, ledger_url: str) -> None:
    seen: list[str] = []
    for turn in range(KILLS):
        command = [sys.executable, "-c", WORKER, ledger_url, f"w{turn}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            seen += [child.stdout.readline().strip() for _ in range(50 + 7 * turn)]
            child.kill()
            # whole lines alone were seen by anybody
            rest = child.stdout.read()
            seen += rest[: rest.rfind("\n") + 1].split()
        assert child.returncode == -9
    written = rows(engine)
    assert len(seen) == len(set(seen)) > KILLS * 50
    assert "" not in seen
    assert set(seen) - written.keys() == set()
