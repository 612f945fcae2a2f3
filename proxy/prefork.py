"""The process that workers are forked from.

It has imported what would take each of them half a second, and loaded the tables by which tokens are counted; these
are in memory once, for all workers. No thread and no event loop may run in it: a fork would inherit their locks as they
are at that moment, held for ever.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import selectors
import signal
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy import tokenizers
from proxy.control import LENGTH_BYTES, Born, Ended, Fork, Kill, NotBorn, decoded, framed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.control import Message

# a terminal sends them, and they are the supervisor's to pass on
_OF_A_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP)
# Not for this process, though service managers send SIGTERM to every process of a service. What comes to one that is
# just forked waits until that can heed it.
_HELD: Final = (*_OF_A_TERMINAL, signal.SIGTERM)
_WAKING_BYTES: Final = 4096


class Newborn(NamedTuple):
    """What a forked process was given, as descriptors: its end of a pair, and the socket to accept on."""

    control: int
    api: int


def fork_when_asked(control: socket.socket) -> Newborn | None:
    """Fork a process whenever the supervisor at the other end of `control` asks for one, until that has ended.

    Returns in each forked process, with what it was given; and None, in this one, at the end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    woken, wakes = socket.socketpair()
    with control, woken, wakes, selectors.DefaultSelector() as selector:
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # as it is by default it would wake nobody
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        newborn = _Nursery(control).tend(selector, woken)
        signal.set_wakeup_fd(-1)
    if newborn is not None:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in _OF_A_TERMINAL:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    return newborn


class _Nursery:
    """The forked processes that live, and what is there for those to come."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._living: set[int] = set()
        self._loaded: frozenset[str] = frozenset()

    def tend(self, selector: selectors.BaseSelector, woken: socket.socket) -> Newborn | None:
        """Do as the supervisor says, and tell it who has ended. Returns as `fork_when_asked`."""
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(_WAKING_BYTES)
                self._bury()
            if self._control in ready:
                message, descriptors = self._read()
                if message is None:
                    return None
                if isinstance(message, Kill) and message.pid in self._living:
                    os.kill(message.pid, signal.SIGKILL)
                elif isinstance(message, Fork) and self._fork(message, descriptors):
                    return Newborn(*descriptors)

    def _read(self) -> tuple[Message | None, list[int]]:
        """What the supervisor says, with what it sends along; None once it has ended."""
        try:
            length, descriptors, *_ = socket.recv_fds(self._control, LENGTH_BYTES, len(Newborn._fields))
            message = self._control.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        except ConnectionError:  # and did not read what was said last
            return None, []
        return decoded(message) if message else None, descriptors

    def _fork(self, asked: Fork, descriptors: Iterable[int]) -> bool:
        """True in the forked process."""
        self._load(asked)
        try:
            pid = os.fork()
        except OSError as error:
            self._say(NotBorn(error.errno or errno.EAGAIN))
        else:
            if pid == 0:
                return True
            self._living.add(pid)
            self._say(Born(pid))
        for descriptor in descriptors:
            os.close(descriptor)
        return False

    def _load(self, asked: Fork) -> None:
        """Import and load what the process will need. What cannot be had it will miss itself, and say so."""
        needed = frozenset((*asked.modules, *asked.encodings))
        if needed <= self._loaded:
            return
        for module in asked.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        with contextlib.suppress(ImportError):
            tokenizers.load(asked.encodings)
        gc.collect()
        gc.freeze()  # to look for garbage among it would copy all of it
        self._loaded |= needed

    def _bury(self) -> None:
        """Wait for those that have ended, and tell how."""
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._living.discard(pid)
            self._say(Ended(pid, os.waitstatus_to_exitcode(status)))

    def _say(self, message: Message) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended, which is read next
            self._control.sendall(framed(message))
