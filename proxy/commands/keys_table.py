"""How `sluice keys` shows keys: as a table for people, or as JSON for programs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from proxy.config.settings import Config
    from proxy.stores.keys import StoredKey

_NO_EDGE: Final = 100_000  # characters: in a file or a pipe a table is as wide as it is


def state_of(key: StoredKey, config: Config, now_ms: int) -> str:
    """What a running proxy with this configuration makes of the key."""
    if key.revoked_ms is not None:
        return "revoked"
    if key.expires_ms is not None and key.expires_ms <= now_ms:
        return "expired"
    if any(named.id == key.id for named in config.keys):
        return "refused: the file has this id"
    if key.plan is not None and key.plan not in config.plans:
        return "refused: no such plan"
    return "active"


def as_json(key: StoredKey, state: str) -> dict[str, Any]:
    """What may be told of a key; its times as in RFC 3339."""
    times = {
        "expires": key.expires_ms,
        "created": key.created_ms,
        "last_used": key.last_used_ms,
        "revoked": key.revoked_ms,
        "old_secret_until": key.previous_until_ms,
    }
    told = {name: None if time_ms is None else _iso(time_ms) for name, time_ms in times.items()}
    return {"id": key.id, "plan": key.plan, "limits": key.limits, "state": state, **told}


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
    return "" if time_ms is None else _iso(time_ms)[:16].replace("T", " ")


def _iso(time_ms: int) -> str:
    """A time as in RFC 3339, in UTC, to the second: `2027-01-01T00:00:00Z`."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
