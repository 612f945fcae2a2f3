"""The ledger as the phases see it: opening, waiting for and settling rows, on the event loop and without blocking it.

What becomes of the rows is the writer's part (`writer.py`). Here it is decided whom to refuse: everybody, while the
database cannot be written, because an exchange that is not on record may not be served; and whoever comes when
`MAX_UNFINISHED` exchanges are open or wait to be written, because what waits is held in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.stores.recovery import Housekeeping, boot_time_ms
from proxy.stores.rows import Row
from proxy.stores.writer import Rhythm, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from proxy.stores.base import Opened, Settled

# twice the connections a worker accepts by default; about a kilobyte each
MAX_UNFINISHED: Final = 20_000
_DURABLE_S: Final = 5.0
_RETRY_AFTER_S: Final = 3.0
_CLOSED: Final = "the ledger is closed"


class DatabaseLedger:
    """The record of every exchange in a database whose tables are up to date (`database.migrate`).

    `worker` names this process: no other process, now or later, may have the same name. `on_commit` is told the
    seconds and the rows of every commit, from another thread. Exchanges older than `keep_ms` are deleted; `steady_ms`
    tells whether `clock_ms` can be relied on for that. Make it on the event loop that uses it, `start` it, and `close`
    it when the last exchange is settled.
    """

    def __init__(
        self,
        engine: Engine,
        worker: str,
        *,
        clock_ms: Callable[[], int],
        steady_ms: Callable[[], int] = boot_time_ms,
        on_commit: Callable[[float, int], None],
        keep_ms: int | None = None,
        rhythm: Rhythm | None = None,
        max_unfinished: int = MAX_UNFINISHED,
        durable_s: float = _DURABLE_S,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.durable_s = durable_s
        self._max_unfinished = max_unfinished
        self._opened = 0
        self._closed = False
        self._ended: asyncio.Future[None] = self.loop.create_future()
        self._rhythm = rhythm or Rhythm()
        self.gathering: asyncio.TimerHandle | None = None  # until the rows that wait are written
        self.writer = Writer(
            engine,
            worker,
            Housekeeping(engine, worker, clock_ms, keep_ms, steady_ms),
            self._rhythm,
            told=self._tell,
            ended=self._end,
            on_commit=on_commit,
        )

    def start(self) -> None:
        """Begin to write; once. A database that is not there is a `problem`, not an error."""
        self.writer.start()

    @property
    def problem(self) -> str | None:
        """What keeps the ledger from being written, for `/readyz`; None if nothing does."""
        return _CLOSED if self._closed else self.writer.problem

    @property
    def waiting(self) -> int:
        """Rows opened or settled that are not committed yet, each counted once."""
        return self.writer.waiting

    def open(self, opened: Opened) -> LedgerEntry:
        """Begin an exchange's row. Raises `ProxyError` STORE_UNAVAILABLE while the ledger cannot be written."""
        writer = self.writer
        unfinished = self._opened - writer.finished_rows
        if self._closed or writer.problem is not None or unfinished >= self._max_unfinished:
            raise unavailable()
        self._opened += 1
        entry = LedgerEntry(opened, ledger=self)
        writer.opened.append(entry)
        if self.gathering is None:
            self.gather()
        return entry

    def gather(self) -> None:
        """Have the writer begin in a while, with all that comes until then."""
        self.gathering = self.loop.call_later(self._rhythm.gather_s, self._gathered)

    def _gathered(self) -> None:
        self.gathering = None
        self.writer.wake()

    async def close(self, patience_s: float) -> int:
        """Write what waits, for up to `patience_s` seconds; the number of rows that could not be written, ever."""
        self._closed = True
        if self.gathering is not None:
            self.gathering.cancel()
        self.writer.stop(patience_s)
        # a database that hangs is not waited for: the thread is left behind
        await asyncio.wait({self._ended}, timeout=patience_s)
        return self.writer.waiting + self.writer.rejected_rows

    def _tell(self, rows: list[Row], written: bool) -> None:  # noqa: FBT001 - the writer's callback, one of two endings
        """Wake, from the writer's thread, whoever waits for these rows; all in one call."""
        rows = [row for row in rows if row.waiters]
        if rows:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(_wake, rows, written)

    def _end(self) -> None:
        with contextlib.suppress(RuntimeError):  # likewise
            self.loop.call_soon_threadsafe(self._ended.set_result, None)


class LedgerEntry(Row, eq=False, gc=False, kw_only=True):
    """One exchange's row."""

    ledger: DatabaseLedger

    async def durable(self) -> None:
        """Wait until the opened row would survive the death of this process.

        Raises `ProxyError` STORE_UNAVAILABLE when it could not be written in time. It may be all the same, later: the
        exchange is settled like any other.
        """
        if self.committed:
            return
        ledger = self.ledger
        writer = ledger.writer
        waiter: asyncio.Future[bool] = ledger.loop.create_future()
        self.waiters.append(waiter)
        if not writer.is_hurried:
            writer.hurry()
        timer = ledger.loop.call_later(ledger.durable_s, _give_up, waiter)
        try:
            # whoever came between the look and the list was not woken
            if not self._is_written() and ledger.problem is None:
                await waiter
        finally:
            timer.cancel()
            self.waiters.remove(waiter)
        if not self.committed:
            raise unavailable()

    def _is_written(self) -> bool:
        """Or was given up."""
        return self.committed or self.finished

    def settle(self, settled: Settled) -> None:
        """Complete the row, soon. Never raises or waits; a second call changes nothing."""
        if self.settled is None:
            self.settled = settled
            ledger = self.ledger
            ledger.writer.settled.append(self)
            if ledger.gathering is None:
                ledger.gather()


def unavailable() -> ProxyError:
    """What a client is told whose exchange cannot be put on record."""
    return ProxyError(STORE_UNAVAILABLE, "The usage ledger cannot be written.", retry_after_s=_RETRY_AFTER_S)


def _wake(rows: list[Row], written: bool) -> None:  # noqa: FBT001 - passed through the event loop, by position
    for row in rows:
        for waiter in row.waiters:
            if not waiter.done():
                waiter.set_result(written)


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
