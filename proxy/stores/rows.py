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
_NO_ID: Final = ("",)  # rows without one fill a statement up, and are not written
_KNOWN: Final = _NAMES.index("ended_ms")  # so many are known of a row that is not settled
_UPSTREAM: Final = _NAMES.index("upstream")
_REPLACED: Final = ("upstream", *_NAMES[_KNOWN:])

# Figures come from upstreams. No answer has a trillion tokens or costs a million dollars, and sums of what passes
# here stay within the databases' 64 bits.
_MOST_TOKENS: Final = 10**12
_MOST_NANO_USD: Final = 10**15


class Row(msgspec.Struct, eq=False, gc=False):
    """An exchange's row on its way: filled by the event loop, written by the writer's thread.

    `committed`: at least as opened. `finished`: committed as settled, or not taken by the database. `waiters` are the
    event loop's, for the commit. `fixed` is what the columns take that are known from the opening, once it was written.
    """

    opened: Opened
    settled: Settled | None = None
    committed: bool = False
    finished: bool = False
    waiters: list[asyncio.Future[bool]] = msgspec.field(default_factory=list)
    fixed: tuple[object, ...] | None = None

    def values(self, worker: str) -> tuple[object, ...]:
        """What the table's columns take, in their order; clean, whatever clients and upstreams sent.

        Of a row that is not settled, as far as it is known.
        """
        fixed = self.fixed
        if fixed is None:  # as a rule a row is written twice
            fixed = self.fixed = _fixed(self.opened, worker)
        settled = self.settled
        if settled is None:
            return fixed
        if settled.upstream is not None and settled.upstream != self.opened.upstream:
            fixed = (*fixed[:_UPSTREAM], _text(settled.upstream), *fixed[_UPSTREAM + 1 :])
        return fixed + _settled(settled)


def _fixed(opened: Opened, worker: str) -> tuple[object, ...]:
    return (
        opened.id,
        worker,
        _text(opened.key_id),
        _text(opened.endpoint),
        _text(opened.model),
        _text(opened.upstream),
        1 if opened.streamed else 0,  # a bool takes SQLite's driver as long as a None
        opened.started_ms,
        _within(opened.reserved_tokens, _MOST_TOKENS),
        _within(opened.reserved_nano_usd, _MOST_NANO_USD),
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
    return number if 0 <= number <= most else max(0, min(number, most))


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
    """Each value a parameter; what is not known yet is written as NULL in the statement.

    As a parameter a None takes 0.4 us and a number 0.1: sqlite3 looks for an adapter of its type. The numbers of open
    and of settled rows are rounded up to powers of two, so that few statements are enough.
    """

    def __init__(self, dialect: Dialect) -> None:
        shape = [sa.column(column.name, column.type) for column in _COLUMNS]
        row = tuple(sa.bindparam(column.name, type_=column.type) for column in _COLUMNS)
        batch = sa.values(*shape, name="batch").data([row]).cte("batch")
        insert = insert_of(dialect)(EXCHANGES).from_select(_NAMES, sa.select(batch).where(batch.c.id != sa.text("''")))
        # compiled for one row; for more its parameters are repeated, since compiling 128 rows takes 50 ms
        self._settled = f"({', '.join('?' * len(_NAMES))})"
        self._opened = f"({', '.join([*'?' * _KNOWN, *['NULL'] * (len(_NAMES) - _KNOWN)])})"
        self._before, self._after = str(_on_conflict(insert).compile(dialect=dialect)).split(self._settled)
        self._statements: dict[tuple[int, int], str] = {}

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        opened = [row for row in rows if len(row) == _KNOWN]
        settled = [row for row in rows if len(row) != _KNOWN]
        sizes = _rounded_up(len(opened)), _rounded_up(len(settled))
        statement = self._statements.get(sizes)
        if statement is None:
            values = ", ".join([self._opened] * sizes[0] + [self._settled] * sizes[1])
            statement = self._statements[sizes] = self._before + values + self._after
        opened += [_NO_ID * _KNOWN] * (sizes[0] - len(opened))
        settled += [_NO_ID * len(_NAMES)] * (sizes[1] - len(settled))
        return statement, (*chain.from_iterable(opened), *chain.from_iterable(settled))


def _rounded_up(number: int) -> int:
    """To a power of two; nothing stays nothing."""
    return 1 << (number - 1).bit_length() if number else 0


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
        # what is not known of a row is not there, and null for the server
        document = msgspec.json.encode([dict(zip(_NAMES, row, strict=False)) for row in rows])
        return self._statement, (document.decode(),)


def _on_conflict(insert: Any) -> sa.Insert:
    excluded = insert.excluded
    statement: sa.Insert = insert.on_conflict_do_update(
        index_elements=[EXCHANGES.c.id],
        set_={name: excluded[name] for name in _REPLACED},
        where=excluded.ended_ms.is_not(None),
    )
    return statement
