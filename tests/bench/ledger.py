"""What the ledger costs: CPU of an exchange's rows, how long an exchange waits for them, whether the queue grows.

    python -m tests.bench.ledger [--postgres]

Exchanges begin at a steady rate, wait for an upstream that thinks, for their row, and end. CPU is this process's, all
threads, less that of the same load without a ledger; PostgreSQL's own processes are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from proxy.core.usage import Usage
from proxy.phases.exchange import new_exchange_id
from proxy.stores.base import Opened, Settled
from proxy.stores.database import migrate, open_database
from proxy.stores.ledger import DatabaseLedger
from tests.fakes.postgres import running_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_S = 0.002
STREAM_S = 0.1
USAGE = Usage(input_tokens=812, output_tokens=240, cached_tokens=512)


@dataclass
class Load:
    """So many exchanges a second, for so long, and how long the upstream thinks."""

    per_second: int
    think_s: float
    seconds: float


@dataclass
class Figures:
    """What was seen."""

    exchanges: int = 0
    cpu_s: float = 0.0
    waits_ms: list[float] = field(default_factory=list)
    most_waiting: int = 0
    commits: list[tuple[float, int]] = field(default_factory=list)

    def wait_ms(self, share: float) -> float:
        return sorted(self.waits_ms)[int(share * (len(self.waits_ms) - 1))] if self.waits_ms else 0.0


def now_ms() -> int:
    return int(time.time() * 1000)


async def exchange(number: int, load: Load, ledger: DatabaseLedger | None, figures: Figures) -> None:
    opened = Opened(
        new_exchange_id(),
        f"team-{number % 50}",
        "chat/completions",
        "gpt-4o-mini",
        "openai",
        streamed=True,
        started_ms=now_ms(),
        reserved_tokens=4096,
        reserved_nano_usd=2_457_600,
    )
    entry = ledger.open(opened) if ledger is not None else None
    if load.think_s:
        await asyncio.sleep(load.think_s)
    began_s = time.perf_counter()
    if entry is not None:
        await entry.durable()
    figures.waits_ms.append((time.perf_counter() - began_s) * 1000)
    await asyncio.sleep(STREAM_S)
    settled = Settled(now_ms(), 200, "ok", "exact", USAGE, 265_800, 1, 21)
    if entry is not None:
        entry.settle(settled)


async def run(load: Load, ledger: DatabaseLedger | None, figures: Figures) -> None:
    """Begin exchanges at a steady rate and wait for the last; the CPU of what the ledger writes later counts, too."""
    cpu_s, began_s = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (passed_s := time.perf_counter() - began_s) < load.seconds:
            while figures.exchanges < passed_s * load.per_second:
                group.create_task(exchange(figures.exchanges, load, ledger, figures))
                figures.exchanges += 1
            if ledger is not None:
                figures.most_waiting = max(figures.most_waiting, ledger.waiting)
            await asyncio.sleep(TICK_S)
    if ledger is not None:
        unwritten = await ledger.close(30)
        assert unwritten == 0, unwritten
    figures.cpu_s = time.process_time() - cpu_s


async def measure(load: Load, url: str) -> tuple[Figures, float]:
    """The figures, and the CPU of an exchange in microseconds that the ledger adds."""
    gc.collect()
    bare = Figures()
    await run(load, None, bare)
    engine = open_database(url)
    migrate(engine)
    figures = Figures()
    ledger = DatabaseLedger(
        engine, f"bench-{now_ms()}", clock_ms=now_ms, on_commit=lambda s, rows: figures.commits.append((s, rows))
    )
    ledger.start()
    await run(load, ledger, figures)
    engine.dispose()
    return figures, (figures.cpu_s / figures.exchanges - bare.cpu_s / bare.exchanges) * 1e6


@contextlib.contextmanager
def database(*, postgres: bool) -> Iterator[str]:
    if postgres:
        with running_postgres() as server:
            yield server.url
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'ledger.db'}"


def main() -> None:
    """Run the loads of the budget and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    head = ("exch/s", "think", "CPU µs/exch", "durable() p50", "p99 ms", "most waiting", "commits/s", "rows", "p99 ms")
    print("".join(f"{title:>14}" for title in head))
    for per_second, think_s in ((500, 0.2), (500, 0.02), (500, 0.0), (2000, 0.2), (2000, 0.02), (2000, 0.0)):
        load = Load(per_second, think_s, arguments.seconds)
        with database(postgres=arguments.postgres) as url:
            figures, cpu_us = uvloop.run(measure(load, url))
        commits = sorted(seconds for seconds, _ in figures.commits)
        cells = (
            f"{figures.exchanges / load.seconds:.0f}",
            f"{think_s * 1000:.0f} ms",
            f"{cpu_us:.1f}",
            f"{figures.wait_ms(0.5):.2f}",
            f"{figures.wait_ms(0.99):.2f}",
            f"{figures.most_waiting}",
            f"{len(commits) / load.seconds:.0f}",
            f"{sum(rows for _, rows in figures.commits) / len(commits):.1f}",
            f"{commits[int(0.99 * (len(commits) - 1))] * 1000:.2f}",
        )
        print("".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
