"""`sluice` as a process of its own that is forked from one which has imported everything.

A hundred tests start one, and an interpreter and its imports take a second of CPU each time. The process, its sockets,
signals, output and exit code are as real. That the command starts by itself is for `tests/test_cli.py`.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING

from proxy.cli import main

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, ForkServerProcess


class Forked:
    """The process, as `asyncio.subprocess.Process` would have it."""

    def __init__(self, process: ForkServerProcess, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(process.sentinel, self._has_ended)
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _has_ended(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        self._ended.set_result(self._process.exitcode)
        self._process.close()


async def fork(words: Sequence[str], environ: Mapping[str, str]) -> Forked:
    """`sluice` with these `words` on its command line."""
    pipes = [context().Pipe(duplex=False) for _ in range(2)]
    process = context().Process(target=_run, args=(tuple(words), dict(environ), *(theirs for _, theirs in pipes)))
    process.start()
    for _, theirs in pipes:
        theirs.close()
    return Forked(process, *[await _read(ours) for ours, _ in pipes])


@functools.cache
def context() -> ForkServerContext:
    """Starts processes that have imported everything."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.fakes.preloaded"])
    return made


class _Output(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        super().eof_received()
        return False  # a pipe has nothing to be kept open for


async def _read(ours: Connection) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    with ours:
        pipe = os.fdopen(os.dup(ours.fileno()), "rb")
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Output(reader), pipe)
    return reader


def _run(words: Sequence[str], environ: Mapping[str, str], stdout: Connection, stderr: Connection) -> None:
    os.setsid()
    for theirs, descriptor in ((stdout, 1), (stderr, 2)):
        with theirs:
            os.dup2(theirs.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    warnings.simplefilter("error")
    sys.argv = ["sluice", *words]
    main()
