"""How `sluice keys` shows keys: as a table for people, or as JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.admin.shown import iso

if TYPE_CHECKING:
    from proxy.stores.keys import StoredKey

_NO_EDGE: Final = 100_000  # characters: in a file or a pipe a table is as wide as it is


def print_json(value: Any) -> None:
    """Print a JSON value for programs and people."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(rows: list[tuple[StoredKey, str]], now_ms: int) -> None:
    """Print keys with their states, one a line where there is room; times are UTC."""
    table = Table("key", "plan", "limits", "state", "expires", "created", "last used", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # an id that is cut off names nothing
    for key, state in rows:
        limits = [f"{kind} {_written(limit)}" for kind, limit in (key.limits or {}).items()]
        times = (shown(time_ms) for time_ms in (key.expires_ms, key.created_ms, key.last_used_ms))
        table.add_row(*map(Text, (key.id, key.plan or "", ", ".join(limits), state + _since(key, now_ms), *times)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _NO_EDGE
    console.print(table)


def _since(key: StoredKey, now_ms: int) -> str:
    if key.revoked_ms is not None:
        return f" {shown(key.revoked_ms)}"
    rotated = key.previous_until_ms is not None and key.previous_until_ms > now_ms
    return f", old secret until {shown(key.previous_until_ms)}" if rotated else ""


def _written(limit: Any) -> str:
    return " + ".join(limit) if isinstance(limit, list) else str(limit)


def shown(time_ms: int | None) -> str:
    """A time in UTC, to the minute; nothing for none."""
    return (iso(time_ms) or "")[:16].replace("T", " ")
