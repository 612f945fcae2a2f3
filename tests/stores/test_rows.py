"""The statement for a batch: any mix of open and settled rows, and nothing but those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.core.usage import Usage
from proxy.stores.database import own_cursor
from proxy.stores.rows import MAX_ROWS, Row, upsert_for
from tests.fakes.ledgers import opened, rows, settled

if TYPE_CHECKING:
    from sqlalchemy import Engine


def write(engine: Engine, batch: list[Row]) -> None:
    upsert = upsert_for(engine.dialect)
    with own_cursor(engine) as cursor:
        cursor.execute(*upsert([row.values("w") for row in batch]))


def row(name: str, *, is_settled: bool) -> Row:
    made = Row(opened(name, streamed=is_settled))
    if is_settled:
        made.settled = settled(usage=Usage(7, 5), cost_nano_usd=3, upstream="other")
    return made


@pytest.mark.parametrize(("open_rows", "settled_rows"), [(1, 0), (0, 1), (3, 1), (2, 5), (9, 9), (1, MAX_ROWS - 1)])
def test_a_batch_is_written_as_it_is_and_may_be_written_again(
    engine: Engine, open_rows: int, settled_rows: int
) -> None:
    kinds = [False] * open_rows + [True] * settled_rows
    batch = [row(f"x{number}", is_settled=kind) for number, kind in enumerate(kinds)]
    batch.sort(key=lambda one: one.opened.id)  # mixed
    for _ in range(2):
        write(engine, batch)
        written = rows(engine)
        assert set(written) == {one.opened.id for one in batch}, "what fills the statement up is no row"
        for one in batch:
            found = written[one.opened.id]
            if one.settled is None:
                assert (found["streamed"], found["upstream"]) == (False, one.opened.upstream)
                assert {found[name] for name in list(found)[list(found).index("ended_ms") :]} == {None}
            else:
                assert (found["streamed"], found["upstream"], found["outcome"]) == (True, "other", "ok")
                assert (found["input_tokens"], found["output_tokens"], found["cost_nano_usd"]) == (7, 5, 3)


def test_an_open_row_written_again_takes_nothing_from_a_settled_one(engine: Engine) -> None:
    late, done = row("a", is_settled=False), row("a", is_settled=True)
    write(engine, [late])
    write(engine, [done, row("b", is_settled=False)])
    before = rows(engine)["a"]
    write(engine, [late, row("c", is_settled=True)])
    assert rows(engine)["a"] == before
    assert before["outcome"] == "ok"
