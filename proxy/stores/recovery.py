"""What keeps the ledger in order beside the exchanges: workers' signs of life, the rows of dead ones, and old rows.

Any number of workers may do this at once, each in small transactions; none depends on another having done its part.
Workers on several machines need clocks that agree within `DEAD_AFTER_MS`. A living worker taken for dead is harmed for
a while only: its settlements replace the interruption.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from proxy.stores.database import insert_of
from proxy.stores.tables import EXCHANGES, WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

_log = logging.getLogger("sluice.ledger")

DEAD_AFTER_MS: Final = 30_000
# what corrections of a clock may add up to
_MOST_MOVED_MS: Final = 60_000
# a transaction of so many takes a few milliseconds, which is what a commit may have to wait for
_STEP_ROWS: Final = 200
INTERRUPTED: Final = "interrupted"


def boot_time_ms() -> int:
    """Milliseconds since some beginning, which nobody can set; the time a machine sleeps counts (clock_gettime(2))."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000


class Housekeeping:
    """Signs of life of one worker, and the small steps that tidy up after others.

    `clock_ms` is UNIX time in milliseconds. Exchanges that began more than `keep_ms` ago are deleted; None keeps all.
    While that clock is not where it must be by `steady_ms`, which cannot be set, nothing is tidied up: a clock that
    somebody sets a year ahead would take all exchanges for old and all workers for dead. Every method may raise
    SQLAlchemy's errors.
    """

    def __init__(
        self,
        engine: Engine,
        worker: str,
        clock_ms: Callable[[], int],
        keep_ms: int | None,
        steady_ms: Callable[[], int] = boot_time_ms,
    ) -> None:
        self._engine = engine
        self._worker = worker
        self._clock_ms = clock_ms
        self._keep_ms = keep_ms
        self._steady_ms = steady_ms
        self._ahead_ms = clock_ms() - steady_ms()
        self._has_moved = False
        self._beat_ms: int | None = None  # as `_reap_from_ms`, of the steady clock
        self._reap_from_ms = 0

    def beat(self) -> None:
        """Say that this worker is alive."""
        now_ms = self._clock_ms()
        row = insert_of(self._engine.dialect)(WORKERS).values(id=self._worker, started_ms=now_ms, seen_ms=now_ms)
        with self._engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=[WORKERS.c.id], set_={"seen_ms": now_ms}))
        beat_ms = self._steady_ms()
        if self._beat_ms is not None and beat_ms - self._beat_ms > DEAD_AFTER_MS:
            # the database or this machine was away, and so may the others have been: they are given time to show up
            self._reap_from_ms = beat_ms + DEAD_AFTER_MS
        self._beat_ms = beat_ms

    def sweep(self) -> bool:
        """Do one small step of what there is to tidy up; whether there may be more."""
        now_ms, steady_ms = self._clock_ms(), self._steady_ms()
        if self._is_off(now_ms - steady_ms - self._ahead_ms):
            return False
        reaped = steady_ms >= self._reap_from_ms and self._reap(now_ms - DEAD_AFTER_MS)
        return reaped or (self._keep_ms is not None and self._prune(now_ms - self._keep_ms))

    def leave(self) -> None:
        """Take this worker off the list: what it left open is anybody's to close."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.id == self._worker))

    def _is_off(self, moved_ms: int) -> bool:
        has_moved = abs(moved_ms) > _MOST_MOVED_MS
        if has_moved and not self._has_moved:
            _log.error(
                "the clock has moved by %d s since the start: nothing is deleted from the ledger until it is back, "
                "or after a restart",
                moved_ms // 1000,
            )
        self._has_moved = has_moved
        return has_moved

    def _reap(self, seen_before_ms: int) -> bool:
        """Close open rows of workers that were not seen since, or are on no list; then forget those workers.

        Such an exchange is charged as reserved, in the columns that reports add up.
        """
        alive = sa.select(WORKERS.c.id).where(WORKERS.c.seen_ms >= seen_before_ms)
        orphans = sa.select(EXCHANGES.c.id).where(EXCHANGES.c.ended_ms.is_(None), EXCHANGES.c.worker.not_in(alive))
        last_seen = sa.select(WORKERS.c.seen_ms).where(WORKERS.c.id == EXCHANGES.c.worker).scalar_subquery()
        close = (
            sa.update(EXCHANGES)
            .where(EXCHANGES.c.id.in_(_some(orphans)), EXCHANGES.c.ended_ms.is_(None))
            .values(
                ended_ms=sa.case((last_seen > EXCHANGES.c.started_ms, last_seen), else_=EXCHANGES.c.started_ms),
                outcome=INTERRUPTED,
                grade="unknown",
                input_tokens=0,
                output_tokens=EXCHANGES.c.reserved_tokens,
                cost_nano_usd=EXCHANGES.c.reserved_nano_usd,
            )
        )
        rows_left = sa.exists().where(EXCHANGES.c.ended_ms.is_(None), EXCHANGES.c.worker == WORKERS.c.id)
        forget = sa.delete(WORKERS).where(WORKERS.c.seen_ms < seen_before_ms, ~rows_left)
        with self._engine.begin() as connection:
            closed = connection.execute(close).rowcount
            connection.execute(forget)
        return closed >= _STEP_ROWS

    def _prune(self, started_before_ms: int) -> bool:
        # an open row is not old: its settlement would bring it back
        old = (
            sa.select(EXCHANGES.c.id)
            .where(EXCHANGES.c.started_ms < started_before_ms, EXCHANGES.c.ended_ms.is_not(None))
            .order_by(EXCHANGES.c.started_ms)
        )
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(EXCHANGES).where(EXCHANGES.c.id.in_(_some(old)))).rowcount >= _STEP_ROWS


def _some(ids: sa.Select[tuple[str]]) -> sa.Select[tuple[str]]:
    """A step's worth of them, without those that another worker is at (PostgreSQL; on SQLite only one writes)."""
    return ids.limit(_STEP_ROWS).with_for_update(skip_locked=True)
