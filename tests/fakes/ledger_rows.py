"""Rows of the ledger as tests put them there: what is not said is as in an ordinary exchange."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from proxy.stores.database import migrate, open_database
from proxy.stores.tables import EXCHANGES

if TYPE_CHECKING:
    from pathlib import Path

DAY_MS = 86_400_000
# 2026-11-21 00:00 UTC
MIDNIGHT_MS = 1_795_219_200_000

_numbers = itertools.count()


def opened(**values: Any) -> dict[str, Any]:
    """An exchange that is under way."""
    begun = {
        "id": f"req_{next(_numbers)}",
        "worker": "worker",
        "key_id": "team-a",
        "endpoint": "chat/completions",
        "model": "gpt-4o",
        "upstream": "openai",
        "streamed": True,
        "started_ms": MIDNIGHT_MS,
        "reserved_tokens": 0,
        "reserved_nano_usd": 0,
    }
    return dict.fromkeys(column.name for column in EXCHANGES.c) | begun | values


def settled(**values: Any) -> dict[str, Any]:
    """An exchange that has ended."""
    numbers = {column.name: 0 for column in EXCHANGES.c if column.name.endswith("_tokens")}
    ended = {"status": 200, "outcome": "ok", "grade": "exact", "cost_nano_usd": 0, "attempts": 1, "first_byte_ms": 300}
    row = opened() | numbers | ended | values
    return row | {"ended_ms": row["started_ms"] + 2_000}


def insert(engine: sa.Engine, *rows: dict[str, Any]) -> None:
    """Put them into a ledger that has its tables."""
    with engine.begin() as connection:
        connection.execute(sa.insert(EXCHANGES), list(rows))


def ledger_with(file: Path, *rows: dict[str, Any]) -> str:
    """A new ledger in `file`; its URL."""
    url = f"sqlite:///{file}"
    engine = open_database(url)
    migrate(engine)
    if rows:
        insert(engine, *rows)
    engine.dispose()
    return url
