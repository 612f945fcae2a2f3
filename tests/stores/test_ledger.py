"""The ledger's contract, over SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import astuple

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.usage import Usage
from proxy.stores.rows import MAX_ROWS
from proxy.stores.writer import Rhythm
from tests.fakes.ledgers import HASTY, START_MS, opened, rows, running_ledger, settled
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from sqlalchemy import Engine

PATIENT = Rhythm(gather_s=60)


@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_a_durable_row_is_in_the_database_before_it_is_settled(engine: Engine) -> None:
    async with running_ledger(engine, rhythm=PATIENT) as ledger:
        entry = ledger.open(opened("a"))
        await entry.durable()
        row = rows(engine)["a"]
        await entry.durable()
    assert row["worker"] == "worker-1"
    assert (row["key_id"], row["model"], row["streamed"], row["started_ms"]) == ("team-a", "gpt-4o", True, START_MS)
    assert (row["reserved_tokens"], row["reserved_nano_usd"]) == (1_000, 2_000)
    assert {row[name] for name in ("ended_ms", "status", "outcome", "grade", "output_tokens", "cost_nano_usd")} == {
        None
    }


async def test_settling_completes_every_column(engine: Engine) -> None:
    usage = Usage(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1.5)
    async with running_ledger(engine) as ledger:
        entry = ledger.open(opened("a"))
        await entry.durable()
        entry.settle(settled(usage=usage, grade="counted", first_byte_ms=None))
    row = rows(engine)["a"]
    assert tuple(row[name] for name in Usage.__struct_fields__) == astuple(usage)
    assert (row["ended_ms"], row["status"], row["outcome"], row["grade"]) == (START_MS + 500, 200, "ok", "counted")
    assert (row["cost_nano_usd"], row["attempts"], row["first_byte_ms"]) == (77, 1, None)
    assert row["reserved_tokens"] == 1_000


async def test_a_second_settlement_changes_nothing(engine: Engine) -> None:
    async with running_ledger(engine) as ledger:
        entry = ledger.open(opened("a"))
        entry.settle(settled(outcome="ok"))
        entry.settle(settled(outcome="client_gone"))
        await until(lambda: ledger.waiting == 0, "the row is written")
        entry.settle(settled(outcome="client_gone"))
    assert rows(engine)["a"]["outcome"] == "ok"


async def test_rows_gather_and_those_who_wait_hurry_them(engine: Engine) -> None:
    commits: list[int] = []
    async with running_ledger(engine, rhythm=PATIENT, on_commit=lambda _s, count: commits.append(count)) as ledger:
        entries = [ledger.open(opened(f"x{number}")) for number in range(100)]
        assert ledger.waiting >= 99
        await asyncio.gather(*(entry.durable() for entry in entries))
        assert len(rows(engine)) == 100
        assert len(commits) <= 3
        for entry in entries:
            entry.settle(settled())
        assert ledger.waiting == 100
    assert {row["outcome"] for row in rows(engine).values()} == {"ok"}


async def test_rows_that_nobody_waits_for_are_written_together_when_they_have_gathered(engine: Engine) -> None:
    commits: list[int] = []
    rhythm = Rhythm(gather_s=0.2, heartbeat_s=60)
    async with running_ledger(engine, rhythm=rhythm, on_commit=lambda _s, count: commits.append(count)) as ledger:
        await ledger.open(opened("first")).durable()  # by then the thread has looked around, and sleeps
        for number in range(50):
            ledger.open(opened(f"x{number}")).settle(settled())
        await until(lambda: ledger.waiting == 0, "they are written")
        assert len(commits) <= 4
    assert len(rows(engine)) == 51


async def test_more_rows_than_a_batch_holds_are_all_written(engine: Engine) -> None:
    async with running_ledger(engine, rhythm=PATIENT) as ledger:
        entries = [ledger.open(opened(f"x{number}")) for number in range(3 * MAX_ROWS + 1)]
        await entries[-1].durable()
    assert len(rows(engine)) == len(entries)


async def test_a_waiter_that_leaves_harms_nobody(engine: Engine) -> None:
    async with running_ledger(engine, rhythm=PATIENT) as ledger:
        entry = ledger.open(opened("a"))
        leaver, stayer = asyncio.ensure_future(entry.durable()), asyncio.ensure_future(entry.durable())
        await asyncio.sleep(0)
        leaver.cancel()
        await stayer
        assert leaver.cancelled()
        assert entry.waiters == []


async def test_what_hostile_clients_and_upstreams_say_is_stored_without_harm(engine: Engine) -> None:
    """Text that a database cannot hold, counts beyond 64 bits: a row that cannot be written would stop them all."""
    huge = Usage(10**30, -5, audio_s=float("nan"))
    async with running_ledger(engine) as ledger:
        bad = ledger.open(opened("bad", model="nul\0lone\ud800é漢", endpoint="a\0b"))
        bad.settle(settled(usage=huge, cost_nano_usd=10**40))
        other = ledger.open(opened("\N{SNOWMAN}'; DROP TABLE exchanges; --", model='"quoted"\\n\n{"id": 1}'))
        await other.durable()
    written = rows(engine)
    assert written["bad"]["model"] == "nul\ufffdlone?é漢"
    assert written["bad"]["input_tokens"] == 10**12
    assert (written["bad"]["output_tokens"], written["bad"]["audio_s"]) == (0, 0.0)
    assert written["bad"]["cost_nano_usd"] == 10**15
    assert written["\N{SNOWMAN}'; DROP TABLE exchanges; --"]["model"] == '"quoted"\\n\n{"id": 1}'


async def test_an_opening_that_comes_late_does_not_undo_a_settlement(engine: Engine) -> None:
    """After an answer that was lost a batch is written again."""
    async with running_ledger(engine) as ledger:
        ledger.open(opened("a")).settle(settled())
        await until(lambda: ledger.waiting == 0, "settled")
    async with running_ledger(engine) as ledger:
        await ledger.open(opened("a")).durable()
    assert rows(engine)["a"]["outcome"] == "ok"


async def test_who_comes_when_too_much_is_unfinished_is_refused(engine: Engine) -> None:
    async with running_ledger(engine, rhythm=HASTY, max_unfinished=3) as ledger:
        entries = [ledger.open(opened(f"x{number}")) for number in range(3)]
        await entries[2].durable()
        with pytest.raises(ProxyError) as caught:
            ledger.open(opened("one too many"))
        assert caught.value.kind is STORE_UNAVAILABLE
        assert caught.value.retry_after_s is not None
        entries[0].settle(settled())
        await until(lambda: ledger.waiting == 0, "one is finished")
        ledger.open(opened("fits"))
    assert "one too many" not in rows(engine)


async def test_closing_writes_what_waits_and_ends_it(engine: Engine) -> None:
    async with running_ledger(engine, rhythm=PATIENT) as ledger:
        for number in range(500):
            ledger.open(opened(f"x{number}")).settle(settled())
    assert len(rows(engine)) == 500
    assert ledger.problem == "the ledger is closed"
    with pytest.raises(ProxyError):
        ledger.open(opened("late"))


async def test_a_burst_larger_than_a_batch_is_written_whole(engine: Engine) -> None:
    """What a batch leaves does not wait for the next exchange, nor for the heartbeat."""
    async with running_ledger(engine, rhythm=replace(HASTY, heartbeat_s=3600.0)) as ledger:
        entries = [ledger.open(opened(f"sl_{number}")) for number in range(MAX_ROWS * 2 + 10)]
        await asyncio.gather(*[entry.durable() for entry in entries])
        for entry in entries:
            entry.settle(settled())
        await until(lambda: not ledger.waiting, "all rows")
