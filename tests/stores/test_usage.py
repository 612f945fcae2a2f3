"""Reports on the ledger: exact sums, the same from both databases, read without disturbing anybody."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.core.usage import GRADES
from proxy.stores import usage
from proxy.stores.base import LedgerProblem
from proxy.stores.database import open_database
from proxy.stores.tables import EXCHANGES
from proxy.stores.usage import DIMENSIONS, Dimension, Query, Report, Row, open_read_only, report, usd
from tests.fakes.ledger_rows import DAY_MS, MIDNIGHT_MS, insert, ledger_with, opened, settled

if TYPE_CHECKING:
    from pathlib import Path

_ALWAYS = (0, 2 * MIDNIGHT_MS)
_COLUMN_OF = {"key": "key_id", "model": "model", "upstream": "upstream", "endpoint": "endpoint", "outcome": "outcome"}


def _usage(engine: sa.Engine, *by: Dimension, **narrowed: Any) -> Report:
    return report(engine, Query(by, *_ALWAYS, **narrowed))


def _names(found: Report) -> list[tuple[str, ...]]:
    return [tuple(getattr(row, dimension) for dimension in found.by) for row in found.rows]


_TOKENS = st.integers(0, 3000) | st.sampled_from([2**31, 2**32 - 1, 2**53, 2**63 - 1])
_STARTED = st.integers(MIDNIGHT_MS - DAY_MS, MIDNIGHT_MS + DAY_MS) | st.sampled_from([MIDNIGHT_MS - 1, MIDNIGHT_MS])
_SAID = {
    "key_id": st.sampled_from(["team-a", "team-b"]),
    "model": st.sampled_from(["gpt-4o", "GPT-4o", "", "模型", "a'b\"%;--"]),
    "started_ms": _STARTED,
    "reserved_tokens": _TOKENS,
    "reserved_nano_usd": _TOKENS,
}
_USED = {
    "upstream": st.sampled_from(["openai", "vllm"]),
    "endpoint": st.sampled_from(["responses", "embeddings"]),
    "outcome": st.sampled_from(["ok", "client_gone", "interrupted"]),
    "grade": st.sampled_from(GRADES),
    "input_tokens": _TOKENS,
    "output_tokens": _TOKENS,
    "cached_tokens": _TOKENS | st.none(),
    "reasoning_tokens": _TOKENS | st.none(),
    "cost_nano_usd": _TOKENS,
}
_ROWS = st.lists(
    st.fixed_dictionaries(_SAID).map(lambda said: opened(**said))
    | st.fixed_dictionaries(_SAID | _USED).map(lambda said: settled(**said)),
    max_size=12,
)
_ENDS = st.tuples(_STARTED, _STARTED).map(sorted)
_QUERIES = st.builds(
    lambda by, ends, key_id, model: Query(tuple(by), ends[0], ends[1] + 1, key_id, model),
    st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=3),
    _ENDS | st.just([0, 2 * MIDNIGHT_MS]),
    st.none() | st.just("team-a"),
    st.none() | st.just("gpt-4o"),
)


def _day(started_ms: int) -> str:
    return {-2: "2026-11-19", -1: "2026-11-20", 0: "2026-11-21", 1: "2026-11-22"}[(started_ms - MIDNIGHT_MS) // DAY_MS]


def _added_up(rows: list[dict[str, Any]], **names: str) -> Row:
    def added(column: str) -> int:
        return sum(row[column] or 0 for row in rows)

    return Row(
        **names,
        requests=len(rows),
        input_tokens=added("input_tokens"),
        cached_tokens=added("cached_tokens"),
        output_tokens=added("output_tokens"),
        reasoning_tokens=added("reasoning_tokens"),
        cost_usd=usd(added("cost_nano_usd")),
    )


def _expected(rows: list[dict[str, Any]], query: Query) -> dict[str, Any]:
    """The same report by plain Python."""
    asked = [
        row
        for row in rows
        if query.since_ms <= row["started_ms"] < query.until_ms
        and query.key_id in (None, row["key_id"])
        and query.model in (None, row["model"])
    ]
    ended = [row for row in asked if row["ended_ms"] is not None]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in ended:
        names = tuple(_day(row["started_ms"]) if by == "day" else row[_COLUMN_OF[by]] for by in query.by)
        groups.setdefault(names, []).append(row)
    by_grade = {grade: _added_up([row for row in ended if row["grade"] == grade]) for grade in GRADES}
    waiting = [row for row in asked if row["ended_ms"] is None]
    reserved = [sum(row[column] for row in waiting) for column in ("reserved_tokens", "reserved_nano_usd")]
    return {
        "rows": {
            names: _added_up(of_group, **dict(zip(query.by, names, strict=True))) for names, of_group in groups.items()
        },
        "total": _added_up(ended),
        "grades": {
            grade: (row.requests, row.input_tokens + row.output_tokens, row.cost_usd) for grade, row in by_grade.items()
        },
        "open": (len(waiting), reserved[0], usd(reserved[1])),
        "interrupted": sum(row["outcome"] == "interrupted" for row in ended),
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(rows=_ROWS, query=_QUERIES)
def test_a_report_is_what_plain_addition_gives(engine: sa.Engine, rows: list[dict[str, Any]], query: Query) -> None:
    with engine.begin() as connection:
        connection.execute(sa.delete(EXCHANGES))
    if rows:
        insert(engine, *rows)
    found = report(engine, query)
    assert {
        "rows": dict(zip(_names(found), found.rows, strict=True)),
        "total": found.total,
        "grades": {grade: msgspec.structs.astuple(share) for grade, share in found.grades.items()},
        "open": msgspec.structs.astuple(found.open),
        "interrupted": found.interrupted,
    } == _expected(rows, query)


def test_days_are_days_of_utc(engine: sa.Engine) -> None:
    insert(engine, *(settled(started_ms=MIDNIGHT_MS + at) for at in (-1, 0, DAY_MS - 1, DAY_MS)))
    found = _usage(engine, "day")
    assert [(row.day, row.requests) for row in found.rows] == [("2026-11-20", 1), ("2026-11-21", 2), ("2026-11-22", 1)]


def test_groups_come_in_the_order_asked_for_the_dearest_first_and_days_as_they_went(engine: sa.Engine) -> None:
    def used(key: str, days: int, cost: int, tokens: int = 0) -> dict[str, Any]:
        started_ms = MIDNIGHT_MS + days * DAY_MS
        return settled(key_id=key, started_ms=started_ms, cost_nano_usd=cost, input_tokens=tokens)

    insert(engine, used("cheap", 0, 1), used("cheap", 1, 8), used("dear", 0, 9), used("dear", 1, 3))
    insert(engine, used("free", 0, 0), used("busy", 0, 0, tokens=5), used("also", 0, 0))
    assert _names(_usage(engine, "key")) == [("dear",), ("cheap",), ("busy",), ("also",), ("free",)]
    (first, second) = ("2026-11-21", "2026-11-22")
    assert _names(_usage(engine, "key", "day"))[:4] == [
        ("dear", first),
        ("dear", second),
        ("cheap", first),
        ("cheap", second),
    ]
    of_days = _names(_usage(engine, "day", "key"))
    assert of_days[:2] == [(first, "dear"), (first, "cheap")]
    assert of_days[-2:] == [(second, "cheap"), (second, "dear")]


def test_absurd_figures_do_not_break_the_report(engine: sa.Engine) -> None:
    most = 2**63 - 1
    insert(engine, *(settled(input_tokens=most, cost_nano_usd=most) for _ in range(3)))
    total = _usage(engine, "key").total
    assert total.input_tokens == 3 * most
    assert Decimal(total.cost_usd) * 10**9 == 3 * most


def test_what_is_still_open_is_in_no_row(engine: sa.Engine) -> None:
    insert(engine, settled(input_tokens=5), opened(reserved_tokens=700, reserved_nano_usd=1_500_000_000))
    insert(engine, opened(key_id="team-b", reserved_tokens=1))
    found = _usage(engine, "key")
    assert (_names(found), found.total.requests, found.total.input_tokens) == ([("team-a",)], 1, 5)
    assert found.open == usage.Share(2, 701, "1.5")


def test_a_report_encodes_to_json_as_it_is(engine: sa.Engine) -> None:
    insert(engine, settled(cost_nano_usd=12_500, grade="counted"))
    found = json.loads(msgspec.json.encode(_usage(engine, "model")))
    assert list(found) == ["since", "until", "by", "rows", "total", "grades", "open", "interrupted"]
    counts = ("requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    figures = {**dict.fromkeys(counts, 0), "requests": 1, "cost_usd": "0.0000125"}
    assert (found["since"], found["by"]) == ("1970-01-01T00:00:00Z", ["model"])
    assert (found["rows"], found["total"]) == ([{"model": "gpt-4o", **figures}], figures)
    assert found["grades"]["counted"] == {"requests": 1, "tokens": 0, "cost_usd": "0.0000125"}


@given(st.integers(0, 10**30))
def test_amounts_are_written_out_exactly(nano_usd: int) -> None:
    text = usd(nano_usd)
    whole, _, rest = text.partition(".")
    assert int(whole) * 10**9 + int(rest.ljust(9, "0")) == nano_usd
    assert not text.endswith((".", "0")) or text == whole


def test_no_tables_is_said_so(ledger_url: str) -> None:
    engine = open_database(ledger_url)
    with pytest.raises(LedgerProblem, match="holds no exchanges"):
        _usage(engine, "key")
    engine.dispose()


@pytest.mark.parametrize("ledger_url", ["postgres"], indirect=True)
def test_reports_cannot_write_on_postgresql(engine: sa.Engine) -> None:
    def write(connection: sa.Connection, *_: object) -> None:
        connection.exec_driver_sql("DELETE FROM exchanges")

    sa.event.listen(engine, "before_execute", write)
    with pytest.raises(LedgerProblem, match="read-only"):
        _usage(engine, "key")


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [({}, "exchanges_by_time"), ({"key_id": "team-a"}, "exchanges_by_key (key_id=? AND started_ms>")],
)
def test_a_period_is_found_by_an_index(tmp_path: Path, narrowed: dict[str, str], index: str) -> None:
    engine = open_read_only(ledger_with(tmp_path / "sluice.db"))
    for by in itertools.combinations(DIMENSIONS, 2):
        asked = usage.statement(Query(by, MIDNIGHT_MS, MIDNIGHT_MS + DAY_MS, **narrowed))
        text = str(asked.compile(engine, compile_kwargs={"literal_binds": True}))
        with engine.connect() as connection:
            plan = " ".join(str(step) for step in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text))
        assert f"USING INDEX {index}" in plan


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerProblem, match=r"none\.db: No such file or directory"):
        open_read_only(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [b"", b"an ordinary text, and no database at all"])
def test_a_file_that_is_no_ledger_stays_as_it_is(tmp_path: Path, there: bytes) -> None:
    file = tmp_path / "sluice.db"
    file.write_bytes(there)
    with pytest.raises(LedgerProblem, match=r"holds no exchanges|is not a database"):
        _usage(open_read_only(f"sqlite:///{file}"), "key")
    assert file.read_bytes() == there


def test_names_of_files_may_be_odd(tmp_path: Path) -> None:
    url = ledger_with(tmp_path / "my ledger#1 100%3Fmode=rwc.db", settled())
    assert _usage(open_read_only(url), "key").total.requests == 1


def test_readers_and_the_writer_do_not_wait_for_each_other(tmp_path: Path) -> None:
    url = ledger_with(tmp_path / "sluice.db", settled())
    writer, reader = open_database(url), open_read_only(url)
    with writer.connect() as writing, reader.connect() as reading_on:
        writing.execute(sa.insert(EXCHANGES), [settled()])
        assert _usage(reader, "key").total.requests == 1  # in the middle of a transaction, which is not seen
        reading_on.exec_driver_sql("BEGIN")
        reading_on.exec_driver_sql("SELECT count(*) FROM exchanges").one()
        writing.commit()  # while somebody reads
        assert _usage(reader, "key").total.requests == 2
        with pytest.raises(sa.exc.OperationalError, match="readonly"):
            reading_on.exec_driver_sql("DELETE FROM exchanges")
    writer.dispose()


_KILLED = """
import os, signal, sys
from tests.fakes.ledger_rows import insert, settled
from proxy.stores.database import open_database
engine = open_database(sys.argv[1])
insert(engine, settled(), settled())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_had_committed_is_reported(tmp_path: Path) -> None:
    """Its commits are still in the log beside the file, which nobody has folded in."""
    url = ledger_with(tmp_path / "sluice.db")
    killed = subprocess.run([sys.executable, "-c", _KILLED, url], check=False, env={"PYTHONPATH": "."})
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "sluice.db-wal").stat().st_size > 0
    assert _usage(open_read_only(url), "key").total.requests == 2
