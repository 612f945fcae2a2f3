"""The rows of exchanges, and the one statement that writes a batch of them.

Opened and settled rows go in the same statement, which is a transaction by itself: an opened row changes nothing where
its id is already there, a settled one replaces what is not fixed at the opening. So a batch may be written again
whenever it is not known whether it was.

One statement a batch also keeps the writer out of the event loop's way: the interpreter lock changes hands at every
step of SQLite, and a busy loop gives it back only every 5 ms. A statement a row wrote 300 rows/s then, this 3,000.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import sqlalchemy as sa

from proxy.stores.database import insert_of
from proxy.stores.tables import EXCHANGES

if TYPE_CHECKING:
    import asyncio

    from sqlalchemy import Dialect

    from proxy.stores.base import Opened, Settled

MAX_ROWS: Final = 128

_COLUMNS: Final = tuple(EXCHANGES.c)
_NAMES: Final = tuple(column.name for column in _COLUMNS)
_SETTLED: Final = _NAMES[_NAMES.index("ended_ms") :]
_NOTHING: Final = (None,) * len(_SETTLED)
_REPLACED: Final = ("upstream", *_SETTLED)

# Figures come from upstreams. No answer has a trillion tokens or costs a million dollars, and sums of what passes
# here stay within the databases' 64 bits.
_MOST_TOKENS: Final = 10**12
_MOST_NANO_USD: Final = 10**15


class Row:
    """An exchange's row on its way: filled by the event loop, written by the writer's thread."""

    __slots__ = ("committed", "finished", "opened", "settled", "waiters")

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.settled: Settled | None = None
        self.committed = False  # at least as opened
        self.finished = False  # committed as settled, or not taken by the database
        self.waiters: list[asyncio.Future[bool]] = []  # the event loop's, for the commit

    def values(self, worker: str) -> tuple[object, ...]:
        """What the table's columns take, in their order; clean, whatever clients and upstreams sent."""
        opened, settled = self.opened, self.settled
        upstream = opened.upstream if settled is None or settled.upstream is None else settled.upstream
        return (
            opened.id,
            worker,
            _text(opened.key_id),
            _text(opened.endpoint),
            _text(opened.model),
            _text(upstream),
            opened.streamed,
            opened.started_ms,
            _within(opened.reserved_tokens, _MOST_TOKENS),
            _within(opened.reserved_nano_usd, _MOST_NANO_USD),
            *(_NOTHING if settled is None else _settled(settled)),
        )


def _settled(settled: Settled) -> tuple[object, ...]:
    *tokens, audio_s = settled.usage
    if max(tokens) > _MOST_TOKENS or min(tokens) < 0:
        tokens = [_within(int(count), _MOST_TOKENS) for count in tokens]
    return (
        settled.ended_ms,
        settled.status,
        settled.outcome,
        settled.grade.value,
        *tokens,
        audio_s if math.isfinite(audio_s) else 0.0,
        _within(settled.cost_nano_usd, _MOST_NANO_USD),
        settled.attempts,
        settled.first_byte_ms,
    )


def _within(number: int, most: int) -> int:
    return max(0, min(number, most))


def _text(text: str) -> str:
    """Without what PostgreSQL (NUL) or UTF-8 (lone surrogates) cannot hold."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def row_errors_of(dialect: Dialect) -> tuple[type[Exception], ...]:
    """What tells of a single row that it cannot be written, and nothing of the database."""
    driver: Any = dialect.loaded_dbapi
    return (driver.DataError, driver.IntegrityError, ValueError, TypeError, OverflowError)


class Upsert(Protocol):
    """The statement for a batch, in the words of a database's driver."""

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        """The statement and its parameters for 1 to `MAX_ROWS` rows of different ids."""


def upsert_for(dialect: Dialect) -> Upsert:
    """The statement that suits the database."""
    return _PostgresUpsert(dialect) if dialect.name == "postgresql" else _SqliteUpsert(dialect)


class _SqliteUpsert:
    """Each value a parameter; the number of rows rounded up to a power of two, so that eight statements are enough."""

    def __init__(self, dialect: Dialect) -> None:
        shape = [sa.column(column.name, column.type) for column in _COLUMNS]
        row = tuple(sa.bindparam(column.name, type_=column.type) for column in _COLUMNS)
        batch = sa.values(*shape, name="batch").data([row]).cte("batch")
        insert = insert_of(dialect)(EXCHANGES).from_select(_NAMES, sa.select(batch).where(batch.c.id.is_not(None)))
        # compiled for one row; for more its parameters are repeated, since compiling 128 rows takes 50 ms
        one = f"({', '.join('?' * len(_COLUMNS))})"
        before, after = str(_on_conflict(insert).compile(dialect=dialect)).split(one)
        sizes = [1 << power for power in range((MAX_ROWS - 1).bit_length() + 1)]
        self._statements = {size: before + ", ".join([one] * size) + after for size in sizes}

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        size = 1 << (len(rows) - 1).bit_length()
        padding = (None,) * ((size - len(rows)) * len(_NAMES))
        return self._statements[size], (*chain.from_iterable(rows), *padding)


class _PostgresUpsert:
    """The batch is one JSON document.

    psycopg tells the server the type of each parameter by its value; with one parameter a value, hardly two batches
    would share a prepared statement.
    """

    def __init__(self, dialect: Dialect) -> None:
        shape = [sa.column(column.name, column.type) for column in _COLUMNS]
        document = sa.cast(sa.bindparam("batch", type_=sa.Text), sa.JSON)
        batch = sa.func.json_to_recordset(document).table_valued(*shape, name="batch").render_derived(with_types=True)
        insert = insert_of(dialect)(EXCHANGES).from_select(_NAMES, sa.select(batch))
        positional = type(dialect)(paramstyle="format")  # type: ignore[call-arg]  # every dialect's default takes it
        self._statement = str(_on_conflict(insert).compile(dialect=positional))

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        document = msgspec.json.encode([dict(zip(_NAMES, row, strict=True)) for row in rows])
        return self._statement, (document.decode(),)


def _on_conflict(insert: Any) -> sa.Insert:
    excluded = insert.excluded
    statement: sa.Insert = insert.on_conflict_do_update(
        index_elements=[EXCHANGES.c.id],
        set_={name: excluded[name] for name in _REPLACED},
        where=excluded.ended_ms.is_not(None),
    )
    return statement
