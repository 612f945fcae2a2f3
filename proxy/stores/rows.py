"""The rows of exchanges, and the one statement that writes a batch of them, all as opened or all as settled.

It is a transaction by itself: an opened row changes nothing where its id is already there, a settled one replaces what
is not fixed at the opening. So a batch may be written again whenever it is not known whether it was.

One statement a batch also keeps the writer out of the event loop's way: the interpreter lock changes hands at every
step of SQLite, and a busy loop gives it back only every 5 ms. A statement a row wrote 300 rows/s then, this 3,000.
"""

from __future__ import annotations

import functools
import math
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import sqlalchemy as sa

from proxy.stores.database import insert_of
from proxy.stores.tables import EXCHANGES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sqlalchemy import Dialect

    from proxy.stores.base import Opened, Settled

MAX_ROWS: Final = 128

_COLUMNS: Final = tuple(EXCHANGES.c)
_NAMES: Final = tuple(column.name for column in _COLUMNS)
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

    def as_opened(self, worker: str) -> tuple[object, ...]:
        """What the columns take that are known from the opening; clean, whatever clients sent."""
        fixed = self.fixed
        if fixed is None:  # as a rule a row is written twice
            opened = self.opened
            texts: tuple[str, ...] = (opened.key_id, opened.endpoint, opened.model, opened.upstream)
            if not _is_plain("".join(texts)):
                texts = tuple(map(_text, texts))
            fixed = self.fixed = (
                opened.id,
                worker,
                *texts,
                1 if opened.streamed else 0,  # a bool takes SQLite's driver as long as a None
                opened.started_ms,
                _within(opened.reserved_tokens, _MOST_TOKENS),
                _within(opened.reserved_nano_usd, _MOST_NANO_USD),
            )
        return fixed

    def as_settled(self, worker: str) -> tuple[object, ...]:
        """What all columns take, in the table's order; clean, whatever upstreams sent. The row must be settled."""
        settled: Any = self.settled
        fixed = self.as_opened(worker)
        if settled.upstream is not None and settled.upstream != self.opened.upstream:
            fixed = (*fixed[:_UPSTREAM], _text(settled.upstream), *fixed[_UPSTREAM + 1 :])
        usage: tuple[float, ...] = msgspec.structs.astuple(settled.usage)
        if max(usage) > _MOST_TOKENS or min(usage) < 0 or not math.isfinite(settled.usage.audio_s):
            usage = _clean(usage)
        return (
            *fixed,
            settled.ended_ms,
            settled.status,
            settled.outcome,
            settled.grade,
            *usage,
            _within(settled.cost_nano_usd, _MOST_NANO_USD),
            settled.attempts,
            settled.first_byte_ms,
        )


def _clean(usage: tuple[float, ...]) -> tuple[float, ...]:
    *tokens, audio_s = usage
    return (*[_within(int(count), _MOST_TOKENS) for count in tokens], audio_s if math.isfinite(audio_s) else 0.0)


def _within(number: int, most: int) -> int:
    return number if 0 <= number <= most else max(0, min(number, most))


def _is_plain(text: str) -> bool:
    return text.isascii() and "\0" not in text


def _text(text: str) -> str:
    """Without what PostgreSQL (NUL) or UTF-8 (lone surrogates) cannot hold."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def row_errors_of(dialect: Dialect) -> tuple[type[Exception], ...]:
    """What tells of a single row that it cannot be written, and nothing of the database."""
    driver: Any = dialect.loaded_dbapi
    return (driver.DataError, driver.IntegrityError, ValueError, TypeError, OverflowError)


class Upsert(Protocol):
    """The statement for a batch, in the words of a database's driver."""

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        """The statement and its parameters for 1 to `MAX_ROWS` rows of different ids, all opened or all settled."""


def upsert_for(dialect: Dialect) -> Upsert:
    """The statement that suits the database. Compiled once in a process: it takes 3 ms."""
    make_dialect: Callable[..., Dialect] = type(dialect)
    return _upsert(dialect.name, make_dialect)


@functools.cache
def _upsert(name: str, make_dialect: Callable[..., Dialect]) -> Upsert:
    return _PostgresUpsert(make_dialect) if name == "postgresql" else _SqliteUpsert(make_dialect)


class _SqliteUpsert:
    """Each value a parameter. The number of rows is rounded up to a power of two, so that few statements are enough.

    What fills a statement up has the first row's id and changes nothing: neither as opened nor, as it ended at 0, as
    settled. It holds numbers: a text as parameter takes 0.1 us more, and a None 0.3, since sqlite3 looks for an adapter
    of its type.
    """

    def __init__(self, make_dialect: Callable[..., Dialect]) -> None:
        dialect = make_dialect(paramstyle="qmark")
        insert = insert_of(dialect)(EXCHANGES)
        opening = insert.values(_parameters(_COLUMNS[:_KNOWN])).on_conflict_do_nothing(index_elements=[EXCHANGES.c.id])
        settling = _on_conflict(insert.values(_parameters(_COLUMNS)))
        self._texts = {
            width: str(statement.compile(dialect=dialect)).split(_marks(width))
            for width, statement in ((_KNOWN, opening), (len(_COLUMNS), settling))
        }
        self._statements: dict[tuple[int, int], str] = {}

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        width, number = len(rows[0]), len(rows)
        size = 1 << (number - 1).bit_length()
        statement = self._statements.get((width, size))
        if statement is None:
            # compiled for one row; for more its parameters are repeated, since compiling 128 rows takes 50 ms
            statement = self._statements[width, size] = ", ".join([_marks(width)] * size).join(self._texts[width])
        filling = (rows[0][0], *[0] * (width - 1)) * (size - number)
        return statement, (*chain.from_iterable(rows), *filling)


def _parameters(columns: tuple[sa.Column[Any], ...]) -> dict[str, sa.BindParameter[Any]]:
    return {column.name: sa.bindparam(column.name, type_=column.type) for column in columns}


def _marks(width: int) -> str:
    return f"({', '.join('?' * width)})"


class _PostgresUpsert:
    """The batch is one JSON document.

    psycopg tells the server the type of each parameter by its value; with one parameter a value, hardly two batches
    would share a prepared statement.
    """

    def __init__(self, make_dialect: Callable[..., Dialect]) -> None:
        dialect = make_dialect(paramstyle="format")
        shape = [sa.column(column.name, column.type) for column in _COLUMNS]
        document = sa.cast(sa.bindparam("batch", type_=sa.Text), sa.JSON)
        batch = sa.func.json_to_recordset(document).table_valued(*shape, name="batch").render_derived(with_types=True)
        insert = insert_of(dialect)(EXCHANGES).from_select(_NAMES, sa.select(batch))
        self._statement = str(_on_conflict(insert).compile(dialect=dialect))

    def __call__(self, rows: list[tuple[object, ...]]) -> tuple[str, tuple[object, ...]]:
        # what is not known of a row is not there, and null for the server
        document = msgspec.json.encode([dict(zip(_NAMES, row, strict=False)) for row in rows])
        return self._statement, (document.decode(),)


def _on_conflict(insert: Any) -> sa.Insert:
    excluded = insert.excluded
    statement: sa.Insert = insert.on_conflict_do_update(
        index_elements=[EXCHANGES.c.id],
        set_={name: excluded[name] for name in _REPLACED},
        where=excluded.ended_ms > sa.text("0"),  # neither null, of an opened row, nor what fills SQLite's statement up
    )
    return statement
