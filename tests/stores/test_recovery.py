"""Recovery: rows of dead workers are closed, workers come and go, old rows are deleted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from proxy.core.usage import Usage
from proxy.stores.recovery import DEAD_AFTER_MS, Housekeeping, boot_time_ms
from proxy.stores.tables import EXCHANGES, WORKERS
from tests.fakes.ledgers import START_MS, ClockMs, away, opened, rows, running_ledger, settled
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from sqlalchemy import Engine

DAY_MS = 86_400_000


@pytest.fixture
def clock() -> ClockMs:
    return ClockMs()


def workers(engine: Engine) -> dict[str, int]:
    def ask() -> dict[str, int]:
        with engine.connect() as connection:
            found = connection.execute(sa.select(WORKERS.c.id, WORKERS.c.seen_ms))
            return {row.id: row.seen_ms for row in found}

    return away(ask)


def leave_open(engine: Engine, worker: str, count: int = 1, started_ms: int = START_MS) -> None:
    """As a worker that died had opened them."""
    made = [opened(f"{worker}-{number}", started_ms=started_ms) for number in range(count)]
    names = made[0].__struct_fields__
    with engine.begin() as connection:
        connection.execute(
            sa.insert(EXCHANGES), [{name: getattr(row, name) for name in names} | {"worker": worker} for row in made]
        )


def keeper_of(engine: Engine, worker: str, clock: ClockMs, keep_ms: int | None = None) -> Housekeeping:
    """Time passes for it as it is moved: by both its clocks."""
    return Housekeeping(engine, worker, clock, keep_ms, steady_ms=clock)


def sweep(keeper: Housekeeping) -> int:
    """Until nothing is left; how many steps that took."""
    steps = 1
    while keeper.sweep():
        steps += 1
    return steps


def test_a_dead_workers_rows_are_closed_as_interrupted_and_charged_as_reserved(engine: Engine, clock: ClockMs) -> None:
    dead = keeper_of(engine, "dead", clock)
    dead.beat()
    clock.now_ms += 4_000
    dead.beat()
    leave_open(engine, "dead")
    clock.now_ms += DEAD_AFTER_MS + 1
    alive = keeper_of(engine, "alive", clock)
    alive.beat()
    sweep(alive)
    row = rows(engine)["dead-0"]
    assert (row["outcome"], row["grade"], row["status"]) == ("interrupted", "unknown", None)
    assert row["ended_ms"] == START_MS + 4_000
    assert (row["input_tokens"], row["output_tokens"], row["cost_nano_usd"]) == (0, 1_000, 2_000)
    assert set(workers(engine)) == {"alive"}


def test_a_worker_that_was_seen_lately_keeps_its_rows(engine: Engine, clock: ClockMs) -> None:
    keeper_of(engine, "quiet", clock).beat()
    leave_open(engine, "quiet")
    clock.now_ms += DEAD_AFTER_MS
    alive = keeper_of(engine, "alive", clock)
    alive.beat()
    sweep(alive)
    assert rows(engine)["quiet-0"]["outcome"] is None
    assert set(workers(engine)) == {"alive", "quiet"}


def test_rows_of_a_worker_that_is_on_no_list_are_closed_at_once(engine: Engine, clock: ClockMs) -> None:
    leave_open(engine, "gone", started_ms=START_MS - 7)
    alive = keeper_of(engine, "alive", clock)
    alive.beat()
    sweep(alive)
    assert (rows(engine)["gone-0"]["outcome"], rows(engine)["gone-0"]["ended_ms"]) == ("interrupted", START_MS - 7)


def test_who_was_away_gives_the_others_time_to_come_back(engine: Engine, clock: ClockMs) -> None:
    """After an outage of the database nobody was seen for a while; that does not make them dead."""
    first, second = keeper_of(engine, "first", clock), keeper_of(engine, "second", clock)
    first.beat()
    second.beat()
    leave_open(engine, "second")
    clock.now_ms += DEAD_AFTER_MS + 1
    first.beat()
    sweep(first)
    assert rows(engine)["second-0"]["outcome"] is None
    clock.now_ms += DEAD_AFTER_MS
    first.beat()
    sweep(first)
    assert rows(engine)["second-0"]["outcome"] == "interrupted"


def test_several_reapers_at_once_close_each_row_once(engine: Engine, clock: ClockMs) -> None:
    keeper_of(engine, "dead", clock).beat()
    leave_open(engine, "dead", 1_000)
    clock.now_ms += DEAD_AFTER_MS + 1
    keepers = [keeper_of(engine, f"alive-{number}", clock) for number in range(4)]
    for keeper in keepers:
        keeper.beat()
    with ThreadPoolExecutor(len(keepers)) as pool:
        steps = list(pool.map(sweep, keepers))
    # on PostgreSQL a reaper leaves what another one is at, and that one may be the last
    assert sum(steps) >= 5
    sweep(keepers[0])
    assert {row["outcome"] for row in rows(engine).values()} == {"interrupted"}
    assert "dead" not in workers(engine)


def test_old_exchanges_are_deleted_in_small_steps_and_open_ones_kept(engine: Engine, clock: ClockMs) -> None:
    leave_open(engine, "dead", 500)
    keeper = keeper_of(engine, "alive", clock, keep_ms=60_000)
    keeper.beat()
    sweep(keeper)
    leave_open(engine, "alive", started_ms=START_MS)
    leave_open(engine, "young", started_ms=START_MS + 30_000)
    clock.now_ms += 60_001
    keeper._reap_from_ms = clock.now_ms + 1
    assert keeper.sweep()
    assert len(rows(engine)) == 302
    assert sweep(keeper) == 2
    assert set(rows(engine)) == {"alive-0", "young-0"}


async def test_a_settlement_replaces_an_interruption(engine: Engine, clock: ClockMs) -> None:
    """A worker that only seemed dead says how it really was."""
    async with running_ledger(engine, "slow", clock_ms=clock) as ledger:
        entry = ledger.open(opened("a"))
        await entry.durable()

        def interrupt() -> None:
            with engine.begin() as connection:
                connection.execute(sa.update(EXCHANGES).values(outcome="interrupted", ended_ms=1, output_tokens=1_000))

        away(interrupt)
        entry.settle(settled(usage=Usage(1, 2)))
    row = rows(engine)["a"]
    assert (row["outcome"], row["grade"], row["output_tokens"], row["ended_ms"]) == ("ok", "exact", 2, START_MS + 500)


async def test_a_running_ledger_shows_signs_of_life_tidies_up_and_leaves(engine: Engine, clock: ClockMs) -> None:
    away(lambda: leave_open(engine, "dead", 450))
    async with running_ledger(engine, "alive", clock_ms=clock, steady_ms=clock, keep_ms=60_000) as ledger:
        await until(lambda: workers(engine) == {"alive": START_MS}, "it is on the list")
        await until(lambda: {row["outcome"] for row in rows(engine).values()} == {"interrupted"}, "rows are closed")
        clock.now_ms += 20_000
        await until(lambda: workers(engine) == {"alive": START_MS + 20_000}, "it is seen again")
        clock.now_ms += 60_001
        await until(lambda: rows(engine) == {}, "old rows are gone")
        assert ledger.problem is None
    assert workers(engine) == {}


@pytest.mark.parametrize("moved_ms", [2 * 365 * DAY_MS, DAY_MS, -DAY_MS, 61_000])
def test_while_the_clock_is_off_nothing_is_deleted_and_nobody_is_dead(
    engine: Engine, moved_ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody sets the machine's clock, and later sets it right."""
    clock, steady = ClockMs(), ClockMs()
    steady.now_ms = 5_000
    leave_open(engine, "dead", 3)
    sweep(keeper_of(engine, "before", clock))
    other = keeper_of(engine, "other", clock)
    keeper = Housekeeping(engine, "keeper", clock, 60_000, steady)
    other.beat()
    keeper.beat()
    leave_open(engine, "other", 2)
    clock.now_ms += moved_ms
    for _ in range(3):
        keeper.beat()
        assert not keeper.sweep()
    assert [row["outcome"] for row in rows(engine).values()] == ["interrupted"] * 3 + [None] * 2
    assert len(caplog.messages) == 1
    assert f"the clock has moved by {moved_ms // 1000} s since the start" in caplog.text

    clock.now_ms = START_MS
    passed_ms = 60_000 + DEAD_AFTER_MS  # it was off for so long, and others show up again within their time
    clock.now_ms += passed_ms
    steady.now_ms += passed_ms
    keeper.beat()
    other.beat()
    sweep(keeper)
    assert {name: row["outcome"] for name, row in rows(engine).items()} == {"other-0": None, "other-1": None}


def test_a_clock_that_is_put_right_by_a_little_stops_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    clock, steady = ClockMs(), ClockMs()
    keeper = Housekeeping(engine, "keeper", clock, 60_000, steady)
    leave_open(engine, "dead", 1)
    keeper.beat()
    clock.now_ms += 59_000
    sweep(keeper)
    assert [row["outcome"] for row in rows(engine).values()] == ["interrupted"]
    assert caplog.messages == []


def test_the_time_since_the_start_can_not_be_set() -> None:
    began_ms = boot_time_ms()
    assert time.monotonic_ns() // 1_000_000 <= began_ms + 1
    assert 0 <= boot_time_ms() - began_ms < 10_000
