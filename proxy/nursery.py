"""Where a supervisor gets its workers' processes: forked from one that has loaded everything (`proxy/prefork.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

from proxy.control import Born, Channel, Ended, Fork, Kill, NotBorn, framed
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Sequence

# it has nothing to do at its end
_EXIT_S: Final = 5.0


class Process:
    """A process that was forked."""

    def __init__(self, pid: int, parent: _Parent, exited: asyncio.Future[int | None]) -> None:
        self.pid = pid
        self._parent = parent
        self._exited = exited

    async def wait(self) -> int | None:
        """Its exit code, of a signal the number below zero; None where its parent has ended, which alone would know."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """End it without a word, if it has not ended."""
        if not self._exited.done():
            self._parent.kill(self.pid)
        elif self._exited.result() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """Starts the process that is forked from when it is first needed, and another one if it has ended."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._parent: _Parent | None = None

    async def fork(self, asked: Fork, descriptors: Sequence[int]) -> Process:
        """A process with what was `asked` for loaded, and two `descriptors` that are its own. Raises `OSError`."""
        async with self._turn:
            if self._parent is None or self._parent.has_ended:
                await self.close()
                self._parent = await _Parent.start()
            return await self._parent.fork(asked, descriptors)

    async def close(self) -> None:
        """End the process that is forked from; those that were go on."""
        if self._parent is not None:
            await self._parent.close()
            self._parent = None


class _Parent:
    """The process that is forked from, as the supervisor sees it."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, channel: Channel) -> None:
        self.has_ended = False
        self._process = process
        self._control = control  # the same as the channel's, which can send no descriptors
        self._channel = channel
        self._birth: asyncio.Future[Process] | None = None
        self._exits: dict[int, asyncio.Future[int | None]] = {}
        self._tasks = BackgroundTasks()
        self._tasks.keep(self._hear(), "nursery")

    @classmethod
    async def start(cls) -> _Parent:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "proxy", "_nursery", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in a terminal is for the supervisor, which passes it on
                )
            return cls(process, ours, await Channel.over(ours.dup()))
        except BaseException:
            ours.close()
            raise

    async def fork(self, asked: Fork, descriptors: Sequence[int]) -> Process:
        """One at a time. Raises `OSError`."""
        self._birth = asyncio.get_running_loop().create_future()
        socket.send_fds(self._control, [framed(asked)], descriptors)
        return await self._birth

    def kill(self, pid: int) -> None:
        """Have it killed by its parent: as long as that has not waited for it, no other process has its number."""
        self._channel.send(Kill(pid))

    async def _hear(self) -> None:
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, Born):
                exited = self._exits[message.pid] = asyncio.get_running_loop().create_future()
                self._born(Process(message.pid, self, exited))
            elif isinstance(message, NotBorn):
                self._born(OSError(message.errno, os.strerror(message.errno)))
            elif isinstance(message, Ended):
                self._exits.pop(message.pid).set_result(message.code)
        self.has_ended = True
        self._born(OSError("the process that workers are forked from has ended"))
        for exited in self._exits.values():
            exited.set_result(None)

    def _born(self, how: Process | OSError) -> None:
        if self._birth is None or self._birth.done():
            return  # nobody waits for it any more: its pair is closed, which ends it
        if isinstance(how, Process):
            self._birth.set_result(how)
        else:
            self._birth.set_exception(how)

    async def close(self) -> None:
        """End it, and let go of it."""
        self._control.close()
        await self._channel.close()
        await self._tasks.close(0.0)
        try:
            await asyncio.wait_for(self._process.wait(), _EXIT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
