"""Rows for a ledger, a ledger that hurries, and what its database holds."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from proxy.core.usage import Usage
from proxy.stores.base import Opened, Settled
from proxy.stores.database import reading
from proxy.stores.ledger import DatabaseLedger
from proxy.stores.tables import EXCHANGES
from proxy.stores.writer import Rhythm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import Engine

_Result = TypeVar("_Result")

START_MS = 1_760_000_000_000
HASTY = Rhythm(
    gather_s=0.005,
    heartbeat_s=0.02,
    sweep_pause_s=0.001,
    first_retry_s=0.01,
    last_retry_s=0.05,
)


class ClockMs:
    """UNIX time in milliseconds that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def opened(exchange_id: str, **changes: Any) -> Opened:
    fields: dict[str, Any] = {
        "id": exchange_id,
        "key_id": "team-a",
        "endpoint": "chat/completions",
        "model": "gpt-4o",
        "upstream": "openai",
        "streamed": True,
        "started_ms": START_MS,
        "reserved_tokens": 1_000,
        "reserved_nano_usd": 2_000,
    }
    return Opened(**(fields | changes))


def settled(**changes: Any) -> Settled:
    fields: dict[str, Any] = {
        "ended_ms": START_MS + 500,
        "status": 200,
        "outcome": "ok",
        "grade": "exact",
        "usage": Usage(input_tokens=12, output_tokens=34, cached_tokens=5),
        "cost_nano_usd": 77,
        "attempts": 1,
        "first_byte_ms": 40,
    }
    return Settled(**(fields | changes))


@contextlib.asynccontextmanager
async def running_ledger(engine: Engine, worker: str = "worker-1", **changes: Any) -> AsyncIterator[DatabaseLedger]:
    """A ledger that is closed afterwards, with nothing left to write."""
    arguments: dict[str, Any] = {
        "clock_ms": ClockMs(),
        "on_commit": lambda _seconds, _rows: None,
        "rhythm": HASTY,
    } | changes
    ledger = DatabaseLedger(engine, worker, **arguments)
    ledger.start()
    try:
        yield ledger
    finally:
        unwritten = await ledger.close(5)
    assert unwritten == 0


def away(ask: Callable[[], _Result]) -> _Result:
    """Call it in another thread: on an event loop, code of ours that blocks is a mistake."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask).result()


def rows(engine: Engine) -> dict[str, dict[str, Any]]:
    """Every exchange in the database, by its id."""

    def ask() -> dict[str, dict[str, Any]]:
        with reading(engine).connect() as connection:
            return {row["id"]: dict(row) for row in connection.execute(sa.select(EXCHANGES)).mappings()}

    return away(ask)
