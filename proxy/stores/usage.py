"""Reading the ledger: who used what, in sums that are exact.

One statement makes a report, so that its rows, total and grades are of one moment in both databases. Money and tokens
are added up as whole numbers and written out as they are: whoever shows them rounds.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from proxy.core.usage import GRADES
from proxy.stores.base import LedgerProblem
from proxy.stores.database import open_database, reading, reason_of
from proxy.stores.recovery import INTERRUPTED
from proxy.stores.tables import EXCHANGES

if TYPE_CHECKING:
    from collections.abc import Iterable

Dimension = Literal["key", "model", "day", "upstream", "endpoint", "outcome"]
Names = tuple[str, ...]  # of one row, in the order of `Query.by`

_DAY_MS: Final = 86_400_000
_OPEN: Final = "open"
# Literals, not parameters: PostgreSQL must see that what is selected is what is grouped by.
_COLUMNS: Final[dict[Dimension, sa.ColumnElement[Any]]] = {
    "key": EXCHANGES.c.key_id,
    "model": EXCHANGES.c.model,
    "day": EXCHANGES.c.started_ms // sa.literal_column(str(_DAY_MS), sa.BigInteger),
    "upstream": EXCHANGES.c.upstream,
    "endpoint": EXCHANGES.c.endpoint,
    "outcome": EXCHANGES.c.outcome,
}
DIMENSIONS: Final = tuple(_COLUMNS)
_STANDING: Final = sa.case(
    (EXCHANGES.c.ended_ms.is_(None), sa.literal_column(f"'{_OPEN}'", sa.Text)), else_=EXCHANGES.c.grade
)
_SUMMED: Final = (
    EXCHANGES.c.input_tokens,
    EXCHANGES.c.cached_tokens,
    EXCHANGES.c.output_tokens,
    EXCHANGES.c.reasoning_tokens,
    EXCHANGES.c.cost_nano_usd,
    EXCHANGES.c.reserved_tokens,
    EXCHANGES.c.reserved_nano_usd,
)


@dataclass(frozen=True, slots=True)
class Query:
    """What to report: exchanges that started from `since_ms` to before `until_ms` (UNIX time), by these dimensions.

    `key_id` and `model` narrow it to one of each. Days are days of UTC.
    """

    by: tuple[Dimension, ...]
    since_ms: int
    until_ms: int
    key_id: str | None = None
    model: str | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What the settled exchanges of one group were charged. The total is a row without names.

    Names are there for the dimensions asked for. `cached_tokens` lie inside the input, `reasoning_tokens` inside the
    output. `cost_usd` is an exact decimal number.
    """

    key: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    upstream: str | UnsetType = UNSET
    endpoint: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: str


class Share(msgspec.Struct, frozen=True):
    """A part of the exchanges, their tokens (input and output) and their cost."""

    requests: int
    tokens: int
    cost_usd: str


class Report(msgspec.Struct, frozen=True):
    """The answer to a `Query`; it encodes to JSON as it is.

    `grades` divides the total by how far it can be trusted. `open` are exchanges that have not ended: what they
    reserve is in no row. `interrupted` counts those whose worker died; they are part of the total.
    """

    since: dt.datetime
    until: dt.datetime
    by: tuple[Dimension, ...]
    rows: list[Row]
    total: Row
    grades: dict[str, Share]
    open: Share
    interrupted: int


class _Sums(NamedTuple):
    """What is added up over a group."""

    requests: int = 0
    interrupted: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano_usd: int = 0
    reserved_tokens: int = 0
    reserved_nano_usd: int = 0

    def plus(self, other: _Sums) -> _Sums:
        """Add two groups."""
        return _Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


def open_read_only(url: str) -> sa.Engine:
    """A ledger to read, which is neither made nor changed by that.

    Raises `LedgerProblem` when there is no such file, and as `open_database` does.
    """
    engine = open_database(url, patience_s=None)
    if engine.dialect.name != "sqlite":
        return engine
    file = Path(str(engine.url.database)).absolute()
    try:
        file.stat()
    except OSError as error:
        raise LedgerProblem(f"{file}: {error.strerror}") from error
    source = file.as_uri() + "?mode=ro"
    return sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(source, uri=True), poolclass=sa.NullPool)


def report(engine: sa.Engine, query: Query) -> Report:
    """Read one report. It blocks while the database works, but keeps no writer waiting. Raises `LedgerProblem`."""
    groups: dict[Names, _Sums] = {}
    grades: dict[str, _Sums] = {grade: _Sums() for grade in GRADES}
    opened = _Sums()
    for names, standing, sums in _read(engine, query):
        if standing == _OPEN:
            opened = opened.plus(sums)
        else:
            groups[names] = groups.get(names, _Sums()).plus(sums)
            grades[standing] = grades[standing].plus(sums)
    total = _Sums()
    for sums in grades.values():
        total = total.plus(sums)
    return Report(
        since=_utc(query.since_ms),
        until=_utc(query.until_ms),
        by=query.by,
        rows=[_row(groups[names], dict(zip(query.by, names, strict=True))) for names in _ordered(groups, query.by)],
        total=_row(total, {}),
        grades={grade: Share(sums.requests, sums.tokens, usd(sums.cost_nano_usd)) for grade, sums in grades.items()},
        open=Share(opened.requests, opened.reserved_tokens, usd(opened.reserved_nano_usd)),
        interrupted=total.interrupted,
    )


def statement(query: Query) -> sa.Select[Any]:
    """The one statement of a report: names, standing (a grade, or open), then the sums in halves."""
    exchanges = EXCHANGES.c
    grouped = [*(_COLUMNS[dimension] for dimension in query.by), _STANDING]
    interrupted = sa.func.sum(sa.case((exchanges.outcome == INTERRUPTED, 1), else_=0))
    halves = [half for column in _SUMMED for half in _halves(column)]
    wanted = [exchanges.started_ms >= query.since_ms, exchanges.started_ms < query.until_ms]
    if query.key_id is not None:
        wanted.append(exchanges.key_id == query.key_id)
    if query.model is not None:
        wanted.append(exchanges.model == query.model)
    return sa.select(*grouped, sa.func.count(), interrupted, *halves).where(*wanted).group_by(*grouped)


def _halves(column: sa.ColumnElement[int]) -> tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]:
    """Sum the upper and the lower 32 bits apart.

    SQLite's sum fails beyond 64 bits, and then one absurd figure of an upstream's or of a client's would make every
    report that it is in fail.
    """
    upper = column.bitwise_rshift(sa.literal_column("32", sa.Integer))
    lower = column.bitwise_and(sa.literal_column("4294967295", sa.BigInteger))
    return sa.func.sum(upper), sa.func.sum(lower)


def _read(engine: sa.Engine, query: Query) -> Iterable[tuple[Names, str, _Sums]]:
    width = len(query.by)
    read_only = reading(engine).execution_options(postgresql_readonly=True)
    try:
        with read_only.connect() as connection:
            found = connection.execute(statement(query)).all()
    except sa.exc.DBAPIError as error:
        raise LedgerProblem(_reason(error)) from error
    for record in found:
        names, standing, counted = record[:width], record[width], record[width + 1 :]
        # PostgreSQL adds up to `numeric`; a group whose figures are all null has no sum
        numbers = [int(number or 0) for number in counted]
        upper, lower = numbers[2::2], numbers[3::2]
        whole = ((high << 32) + low for high, low in zip(upper, lower, strict=True))
        yield tuple(map(_name, query.by, names)), standing, _Sums(numbers[0], numbers[1], *whole)


def _name(dimension: Dimension, value: Any) -> str:
    if dimension == "day":
        return _utc(value * _DAY_MS).date().isoformat()
    return str(value)


def _ordered(groups: dict[Names, _Sums], by: tuple[Dimension, ...]) -> list[Names]:
    """Group within group in the order of `by`: days as they went, of all else first what cost most, then most used."""
    heads: dict[Names, _Sums] = {}
    for names, sums in groups.items():
        for depth in range(1, len(names) + 1):
            heads[names[:depth]] = heads.get(names[:depth], _Sums()).plus(sums)

    def place(names: Names) -> list[tuple[int, int, str]]:
        within = (heads[names[:depth]] for depth in range(1, len(names) + 1))
        return [
            (0, 0, name) if dimension == "day" else (-sums.cost_nano_usd, -sums.tokens, name)
            for dimension, name, sums in zip(by, names, within, strict=True)
        ]

    return sorted(groups, key=place)


def _row(sums: _Sums, names: dict[Dimension, str]) -> Row:
    return Row(
        **names,
        requests=sums.requests,
        input_tokens=sums.input_tokens,
        cached_tokens=sums.cached_tokens,
        output_tokens=sums.output_tokens,
        reasoning_tokens=sums.reasoning_tokens,
        cost_usd=usd(sums.cost_nano_usd),
    )


def usd(nano_usd: int) -> str:
    """The exact amount in USD, without an exponent and without zeros that say nothing: `0.0000125`, `12`."""
    whole, rest = divmod(nano_usd, 1_000_000_000)
    return f"{whole}.{rest:09}".rstrip("0").removesuffix(".")


def _utc(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)


def _reason(error: sa.exc.DBAPIError) -> str:
    said = reason_of(error)
    is_empty = "no such table" in said or 'relation "exchanges" does not exist' in said
    return "it holds no exchanges: no Sluice has written to it" if is_empty else said
