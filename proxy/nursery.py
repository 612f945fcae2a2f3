"""Where a supervisor gets its workers' processes: forked from one that has loaded everything (`proxy/prefork.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

from proxy.control import Born, Channel, Ended, Fork, Kill, NotBorn, framed
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Sequence

# So long the process that is forked from may take: to end, when it has nothing more to do;
_EXIT_S: Final = 5.0
# to fork, for which it loads before what is needed, on a tenth of a CPU perhaps;
_FORK_S: Final = 60.0
# and to kill, and tell of it
_KILL_S: Final = 5.0


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
            _kill(self.pid)


class Nursery:
    """Starts the process that is forked from when it is first needed, and another one if it has ended.

    One that does not fork within `fork_s` seconds, or end within `kill_s` what it is to kill, hangs, and is killed.
    """

    def __init__(self, *, fork_s: float = _FORK_S, kill_s: float = _KILL_S) -> None:
        self._fork_s = fork_s
        self._kill_s = kill_s
        self._turn = asyncio.Lock()
        self._parent: _Parent | None = None
        self._is_closed = False
        self._orphans: set[int] = set()

    async def fork(self, asked: Fork, descriptors: Sequence[int]) -> Process:
        """A process with what was `asked` for loaded, and two `descriptors` that are its own. Raises `OSError`."""
        async with self._turn:
            self._bury()
            parent = self._parent
            if parent is None or parent.has_ended:
                await self._let_go()
                parent = self._parent = await _Parent.start(self._kill_s)
            if self._is_closed:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            try:
                return await asyncio.wait_for(parent.fork(asked, descriptors), self._fork_s)
            except TimeoutError:
                parent.end()
                raise OSError(errno.ETIMEDOUT, "the process that workers are forked from does not answer") from None

    async def close(self) -> None:
        """End the process that is forked from; those that were go on. Who waits for one gets an `OSError`."""
        self._is_closed = True
        await self._let_go()
        async with self._turn:  # one was being started
            await self._let_go()

    async def _let_go(self) -> None:
        parent, self._parent = self._parent, None
        if parent is not None:
            await parent.close()
            self._orphans |= parent.orphans

    def _bury(self) -> None:
        """Wait for orphans that have ended: as the first process of a container the supervisor inherits them."""
        for pid in tuple(self._orphans):
            with contextlib.suppress(ChildProcessError):  # somebody else inherited it
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._orphans.discard(pid)


class _Parent:
    """The process that is forked from, as the supervisor sees it."""

    def __init__(
        self, process: asyncio.subprocess.Process, control: socket.socket, channel: Channel, kill_s: float
    ) -> None:
        self.has_ended = False
        self.orphans: frozenset[int] = frozenset()
        self._process = process
        self._control = control  # the same as the channel's, which can send no descriptors
        self._channel = channel
        self._kill_s = kill_s
        self._births: deque[asyncio.Future[Process]] = deque()  # in the order in which they were asked for
        self._exits: dict[int, asyncio.Future[int | None]] = {}
        self._doomed: set[int] = set()  # which were to be killed
        self._tasks = BackgroundTasks()
        self._tasks.keep(self._hear(), "nursery")

    @classmethod
    async def start(cls, kill_s: float) -> _Parent:
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
            return cls(process, ours, await Channel.over(ours.dup()), kill_s)
        except BaseException:
            ours.close()
            raise

    async def fork(self, asked: Fork, descriptors: Sequence[int]) -> Process:
        """As `Nursery.fork`, for as long as it takes."""
        socket.send_fds(self._control, [framed(asked)], descriptors)
        birth: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._births.append(birth)
        return await birth

    def kill(self, pid: int) -> None:
        """Have it killed by its parent: as long as that has not waited for it, no other process has its number."""
        self._doomed.add(pid)
        self._channel.send(Kill(pid))
        asyncio.get_running_loop().call_later(self._kill_s, self._must_be_over, pid)

    def _must_be_over(self, pid: int) -> None:
        if pid in self._exits:
            self.end()

    def end(self) -> None:
        """End it without a word, as it does not do what it is asked."""
        self.has_ended = True  # it is asked for nothing more
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _hear(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                if isinstance(message, Born):
                    exited = self._exits[message.pid] = asyncio.get_running_loop().create_future()
                    self._born(Process(message.pid, self, exited))
                elif isinstance(message, NotBorn):
                    self._born(OSError(message.errno, os.strerror(message.errno)))
                elif isinstance(message, Ended):
                    self._doomed.discard(message.pid)
                    self._exits.pop(message.pid).set_result(message.code)
        finally:
            self._is_over()

    def _born(self, how: Process | OSError) -> None:
        birth = self._births.popleft()
        if birth.done():
            return  # nobody waits for it any more: its pair is closed, which ends it
        if isinstance(how, Process):
            birth.set_result(how)
        else:
            birth.set_exception(how)

    def _is_over(self) -> None:
        """Nothing more will be heard of it."""
        self.has_ended = True
        while self._births:
            self._born(OSError("the process that workers are forked from has ended"))
        for pid in self._doomed:
            _kill(pid)
        self.orphans = frozenset(self._exits)
        for exited in self._exits.values():
            exited.set_result(None)
        self._exits.clear()

    async def close(self) -> None:
        """End it, and let go of it."""
        self._control.close()
        await self._channel.close()
        await self._tasks.close(0.0)
        try:
            await asyncio.wait_for(self._process.wait(), _EXIT_S)
        except TimeoutError:
            self.end()
            await self._process.wait()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
