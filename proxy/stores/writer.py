"""The ledger's writer: one thread that gathers rows into batches and commits them, again and again until it succeeds.

The event loop hands rows over without a lock and without waiting: deques whose ends are atomic. Waking the thread costs
both sides a switch of the interpreter lock, so that it is woken for a batch that has gathered, or for what somebody
waits for, and not for each row.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from proxy.stores.database import check_file, describe, is_broken, own_cursor
from proxy.stores.rows import MAX_ROWS, Row, row_errors_of, upsert_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from proxy.stores.recovery import Housekeeping

_log = logging.getLogger("sluice.ledger")


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When the writer does what, in seconds."""

    # An opened row is wanted when the upstream answers: a model takes some hundred milliseconds to its first byte, and
    # whoever waits earlier says so. Larger batches cost less: of 25 exchanges half of what they cost by eight.
    gather_s: float = 0.1
    heartbeat_s: float = 5.0
    sweep_pause_s: float = 0.02
    first_retry_s: float = 0.1
    last_retry_s: float = 2.0


# Of the five seconds a row is waited for: what a first try may have taken, if there is to be a second one at once.
_QUICK_S: Final = 1.0


class Writer:
    """Writes rows to a database from a thread of its own.

    `opened` takes rows for when somebody waits for one of them or they have gathered, `settled` the same rows once they
    are settled, for when they have gathered.
    `told(rows, written)` is called from that thread after every commit and every failure, with the rows concerned;
    `on_commit(seconds, rows)` after every commit.
    """

    def __init__(
        self,
        engine: Engine,
        worker: str,
        housekeeping: Housekeeping,
        rhythm: Rhythm,
        *,
        told: Callable[[list[Row], bool], None],
        ended: Callable[[], None],
        on_commit: Callable[[float, int], None],
    ) -> None:
        self._engine = engine
        self._worker = worker
        self._housekeeping = housekeeping
        self._rhythm = rhythm
        self._told = told
        self._ended = ended
        self._on_commit = on_commit
        self._upsert = upsert_for(engine.dialect)
        self._row_errors = row_errors_of(engine.dialect)
        self.opened: deque[Row] = deque()
        self.settled: deque[Row] = deque()
        self._opening: list[Row] = []  # the batch in work, or kept because it could not be written
        self._settling: list[Row] = []
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.is_hurried = False
        self._is_due = False  # what has gathered
        self._give_up_s: float | None = None
        self._retry_s = 0.0
        self._began_s = 0.0
        self._tries_again = False
        self._beat_due_s = 0.0
        self._sweeping = False
        self.problem: str | None = None
        self.finished_rows = 0  # nothing is left to be written of them
        self.rejected_rows = 0  # of those: not written, because the database does not take them
        self._thread = threading.Thread(target=self._run, name="sluice-ledger", daemon=True)

    @property
    def waiting(self) -> int:
        """Rows handed over that are not committed yet, each counted once."""
        # copies are made in one step of the interpreter: a deque must not be read while another thread adds to it
        rows = {*self.opened.copy(), *self.settled.copy(), *self._opening, *self._settling}
        return sum(not row.finished for row in rows)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def wake(self) -> None:
        """Rows have gathered: commit what is there."""
        if self.opened or self.settled:
            self._is_due = True
            self._wakes.put(None)

    def hurry(self) -> None:
        """Somebody waits for an opened row: commit these as soon as possible. Needless while `is_hurried`."""
        self.is_hurried = True
        self._wakes.put(None)

    def stop(self, patience_s: float) -> None:
        """Write what is there and end; give up after `patience_s` seconds."""
        self._give_up_s = time.monotonic() + patience_s
        self._wakes.put(None)

    def _run(self) -> None:
        while not self._is_over():
            try:
                with own_cursor(self._engine) as cursor:
                    self._serve_connected(cursor)
            except Exception as error:  # noqa: BLE001 - whatever it is: a ledger without its thread loses everything
                self._failed(error)
                self._wait_to_retry()
        self._tell_failure()
        self._ended()

    def _is_over(self) -> bool:
        return self._give_up_s is not None and (not self.waiting or time.monotonic() > self._give_up_s)

    def _serve_connected(self, cursor: Any) -> None:
        """Work until the database fails; to return is to connect again at once, write the batch again and tell nobody.

        A server ends connections for reasons that are over by then: it was restarted, or nothing was asked for long.
        """
        try:
            self._serve(cursor)
        except Exception as error:
            is_late = time.monotonic() - self._began_s > _QUICK_S
            if self._tries_again or self.problem is not None or is_late or not is_broken(cursor, error):
                raise
            self._tries_again = True

    def _serve(self, cursor: Any) -> None:
        """Work until there is nothing left to do, or the database fails."""
        while not self._is_over():
            self._began_s = time.monotonic()
            if self._began_s >= self._beat_due_s:
                check_file(self._engine, cursor)
                self._housekeeping.beat()
                self._beat_due_s = time.monotonic() + self._rhythm.heartbeat_s
                self._sweeping = True
            self._write(cursor)
            self._tries_again = False
            if self.problem is not None:
                self.problem = None
                _log.warning("the ledger can be written again; %d rows wait", self.waiting)
            if self._sweeping and not self.is_hurried and self._give_up_s is None:
                self._sweep()
            self._gather()
        if not self.waiting:
            self._housekeeping.leave()

    def _sweep(self) -> None:
        try:
            self._sweeping = self._housekeeping.sweep()
        except SQLAlchemyError as error:
            # tidying up is no reason to refuse exchanges; if the database is gone, the next commit will tell
            self._sweeping = False
            _log.warning("the ledger could not be tidied up: %s", describe(error))

    def _gather(self) -> None:
        """Sleep until a batch or something else is due."""
        if self.is_hurried or self._has_gathered() or len(self.opened) >= MAX_ROWS:
            return
        limit_s = self._rhythm.sweep_pause_s if self._sweeping else max(self._beat_due_s - time.monotonic(), 0.0)
        if self.opened or self.settled:  # handed over while nobody heeded the wakes
            limit_s = min(limit_s, self._rhythm.gather_s)
        try:
            self._wakes.get(timeout=limit_s)
        except queue.Empty:
            self._is_due = True

    def _has_gathered(self) -> bool:
        return self._is_due or self._give_up_s is not None or len(self.settled) >= MAX_ROWS

    def _take(self) -> None:
        """Fill the batch, each row once: with what somebody may wait for, and with what is settled if it has gathered.

        A row leaves its deque when it is in the batch: `waiting` must not miss it in between.
        """
        self.is_hurried = False
        while not self._wakes.empty():  # who woke this thread has handed rows over before
            self._wakes.get_nowait()
        opened, settled = self.opened, self.settled
        if self._has_gathered():
            self._is_due = False
            while settled and len(self._settling) < MAX_ROWS:
                if not settled[0].finished:
                    self._settling.append(settled[0])
                settled.popleft()
            if settled:
                self._is_due = True
        while opened and len(self._opening) < MAX_ROWS:
            if opened[0].settled is None:  # else it comes, or came, with the settled
                self._opening.append(opened[0])
            opened.popleft()
        if opened:
            self.is_hurried = True

    def _write(self, cursor: Any) -> None:
        """Commit a batch, if there is one; on failure it stays, and whoever waits is told."""
        if not (self._opening or self._settling):
            self._take()
        for batch in (self._opening, self._settling):
            if batch:
                self._commit(cursor, batch, len(batch))

    def _commit(self, cursor: Any, batch: list[Row], number: int) -> None:
        """Write the first so many of a batch, and take them from it; by halves, where one of them is not taken."""
        rows = batch[:number]
        are_settled = batch is self._settling
        worker = self._worker
        began_s = time.perf_counter()
        try:
            values = [row.as_settled(worker) if are_settled else row.as_opened(worker) for row in rows]
            cursor.execute(*self._upsert(values))
        except self._row_errors as error:
            if number == 1:
                self._reject(batch, error)
            else:
                self._commit(cursor, batch, number // 2)
                self._commit(cursor, batch, number - number // 2)
            return
        took_s = time.perf_counter() - began_s
        check_file(self._engine, cursor)
        for row in rows:
            row.committed = True
            row.finished = are_settled
        if are_settled:
            self.finished_rows += number
        del batch[:number]
        self._told(rows, True)
        self._on_commit(took_s, number)

    def _reject(self, batch: list[Row], error: Exception) -> None:
        """Give up a row that can never be written: it may not keep all others from it."""
        row = batch[0]
        row.finished = True
        self.finished_rows += 1
        self.rejected_rows += 1
        del batch[0]
        _log.error("the ledger does not take the row of exchange %s: %s", row.opened.id, describe(error))
        self._told([row], False)

    def _failed(self, error: Exception) -> None:
        began = self.problem is None
        self.problem = describe(error)
        self._retry_s = self._rhythm.first_retry_s if began else min(2 * self._retry_s, self._rhythm.last_retry_s)
        # the heartbeat is what tries whether the database is back, also when no row waits
        self._beat_due_s = 0.0
        if began:
            _log.error("the ledger cannot be written: %s", self.problem)
        self._tell_failure()

    def _tell_failure(self) -> None:
        # taken and put back: a deque must not be read while another thread adds to it
        opened = [self.opened.popleft() for _ in range(len(self.opened))]
        self.opened.extend(opened)
        self._told([*self._opening, *self._settling, *opened], False)

    def _wait_to_retry(self) -> None:
        deadline_s = time.monotonic() + self._retry_s
        if self._give_up_s is not None:
            deadline_s = min(deadline_s, self._give_up_s)
        with contextlib.suppress(queue.Empty):
            self._wakes.get(timeout=max(deadline_s - time.monotonic(), 0.0))
            while self._give_up_s is None:
                self._wakes.get(timeout=max(deadline_s - time.monotonic(), 0.0))
