"""Writing log lines without ever waiting: a thread of its own, a bounded queue, and lines that arrive whole."""

from __future__ import annotations

import errno
import os
import queue
import select
import sys
import threading
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

# a wake-up of the writer costs the event loop two switches of the interpreter lock; so it takes what 20 ms bring
_GATHER_S: Final = 0.02
_BATCH_LINES: Final = 100


class HasFileno(Protocol):
    """A file, a pipe or a terminal."""

    def fileno(self) -> int:
        """Its descriptor."""


class LogWriter:
    """Writes lines to a descriptor, in order, from a thread of its own.

    At most `max_lines` wait; more are dropped and counted, as are lines that cannot be written. The descriptor stays
    the caller's. Threads do not survive a fork: make the writer in the process that logs. Where several processes
    write to one pipe it `is_shared`: no write is then longer than what a pipe takes in one piece (pipe(7)), so that
    nobody's lines land inside another's.
    """

    def __init__(self, stream: HasFileno, max_lines: int = 10_000, *, is_shared: bool = False) -> None:
        self._descriptor = stream.fileno()
        self._write_bytes = select.PIPE_BUF if is_shared else sys.maxsize
        self._max_lines = max_lines
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._dropped = 0
        self._dropped_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sluice-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines dropped so far."""
        return self._dropped

    def is_terminal(self) -> bool:
        """Somebody may be looking: colours are welcome."""
        return os.isatty(self._descriptor)

    def write(self, line: bytes) -> None:
        """Take a line, without its newline. Never waits, never raises."""
        if self._lines.qsize() >= self._max_lines:
            self._drop(1)
        else:
            self._lines.put(line)

    def close(self, patience_s: float = 2.0) -> None:
        """Write what waits, for up to `patience_s` seconds; what a blocked pipe does not take by then is lost."""
        if not self._closing.is_set():
            self._max_lines = 0  # no more is taken
            self._closing.set()
            self._lines.put(None)
        self._thread.join(patience_s)

    def _drop(self, lines: int) -> None:
        with self._dropped_lock:
            self._dropped += lines

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._lines.get()]
            self._closing.wait(_GATHER_S)
            batch += [self._lines.get() for _ in range(min(self._lines.qsize(), _BATCH_LINES - 1))]
            ended = None in batch
            for lines in self._pieces([line for line in batch if line is not None]):
                try:
                    self._write_all(b"\n".join([*lines, b""]))
                except OSError:
                    self._drop(len(lines))  # nobody reads any more, or the disk is full: that may pass

    def _pieces(self, lines: list[bytes]) -> Iterable[list[bytes]]:
        """The lines of each write; a line that is longer than one may be has one of its own."""
        if sum(map(len, lines)) + len(lines) <= self._write_bytes:
            return [lines]
        pieces: list[list[bytes]] = [[]]
        size = 0
        for line in lines:
            size += len(line) + 1
            if pieces[-1] and size > self._write_bytes:
                pieces.append([])
                size = len(line) + 1
            pieces[-1].append(line)
        return pieces

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                # somebody made the descriptor non-blocking, which a pipe's two ends share
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll()
