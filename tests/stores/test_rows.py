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
    """The settled rows or the open ones, which the writer never mixes."""
    upsert = upsert_for(engine.dialect)
    with own_cursor(engine) as cursor:
        cursor.execute(*upsert([row.as_opened("w") if row.settled is None else row.as_settled("w") for row in batch]))


def row(name: str, *, is_settled: bool) -> Row:
    made = Row(opened(name, streamed=is_settled))
    if is_settled:
        made.settled = settled(usage=Usage(7, 5), cost_nano_usd=3, upstream="other")
    return made


@pytest.mark.parametrize("number", [1, 2, 3, 5, 9, MAX_ROWS - 1, MAX_ROWS])
@pytest.mark.parametrize("is_settled", [False, True])
def test_a_batch_is_written_as_it_is_and_may_be_written_again(engine: Engine, number: int, *, is_settled: bool) -> None:
    batch = [row(f"x{at}", is_settled=is_settled) for at in range(number)]
    for _ in range(2):
        write(engine, batch)
        written = rows(engine)
        assert set(written) == {one.opened.id for one in batch}, "what fills the statement up is no row"
        for found in written.values():
            if is_settled:
                assert (found["streamed"], found["upstream"], found["outcome"]) == (True, "other", "ok")
                assert (found["input_tokens"], found["output_tokens"], found["cost_nano_usd"]) == (7, 5, 3)
            else:
                assert (found["streamed"], found["upstream"]) == (False, batch[0].opened.upstream)
                assert {found[name] for name in list(found)[list(found).index("ended_ms") :]} == {None}


@pytest.mark.parametrize("number", [1, 3])
def test_settling_completes_rows_that_are_open_and_leaves_others_alone(engine: Engine, number: int) -> None:
    write(engine, [row(f"x{at}", is_settled=False) for at in range(number + 1)])
    write(engine, [row(f"x{at}", is_settled=True) for at in range(number)])
    written = rows(engine)
    assert {name for name, found in written.items() if found["outcome"] == "ok"} == {f"x{at}" for at in range(number)}
    assert written[f"x{number}"]["ended_ms"] is None
    assert {found["streamed"] for found in written.values()} == {False}, "what is fixed at the opening stays"


def test_an_open_row_written_again_takes_nothing_from_a_settled_one(engine: Engine) -> None:
    late, done = row("a", is_settled=False), row("a", is_settled=True)
    write(engine, [late])
    write(engine, [done])
    before = rows(engine)["a"]
    write(engine, [late, row("b", is_settled=False), row("c", is_settled=False)])
    assert rows(engine)["a"] == before
    assert before["outcome"] == "ok"
