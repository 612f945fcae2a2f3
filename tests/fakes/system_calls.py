"""System calls of one thread, counted with ptrace(2): no root, no program, no extension.

    python -m tests.fakes.system_calls PID FILE

follows the thread PID from the moment FILE says "counting" until SIGTERM, then writes how often it called what, by
number. The thread must let itself be traced (`prctl(PR_SET_PTRACER)`, where Yama guards) and runs on when this ends.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

SEIZE: Final = 0x4206  # requests of ptrace(2)
INTERRUPT: Final = 0x4207
SYSCALL: Final = 24
GET_SYSCALL_INFO: Final = 0x420E
TRACE_SYSTEM_CALLS: Final = 1  # PTRACE_O_TRACESYSGOOD: their stops are told from signals by bit 7
WALL: Final = 0x40000000
INFO_BYTES: Final = 88  # struct ptrace_syscall_info; `op` is its first byte, the number of the call at 24
ENTRY: Final = 1
STOPPED_BY_CALL: Final = signal.SIGTRAP | 0x80


class Traced:
    """A thread whose system calls are counted."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._libc.ptrace.restype = ctypes.c_long
        self.calls: collections.Counter[int] = collections.Counter()

    def _ptrace(self, request: int, address: int = 0, data: int = 0) -> None:
        if self._libc.ptrace(request, self._thread, address, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def begin(self) -> None:
        """Stop it at its next system call, and at all that follow."""
        self._ptrace(SEIZE, data=TRACE_SYSTEM_CALLS)
        self._ptrace(INTERRUPT)
        os.waitpid(self._thread, WALL)
        self._ptrace(SYSCALL)

    def follow(self) -> None:
        """Count until interrupted, or until it ends."""
        info = ctypes.create_string_buffer(INFO_BYTES)
        while True:
            _, status = os.waitpid(self._thread, WALL)
            if not os.WIFSTOPPED(status):
                return
            passed_on = 0
            if os.WSTOPSIG(status) == STOPPED_BY_CALL:
                self._ptrace(GET_SYSCALL_INFO, INFO_BYTES, ctypes.addressof(info))
                if info.raw[0] == ENTRY:
                    self.calls[int.from_bytes(info.raw[24:32], sys.byteorder)] += 1
            elif status >> 16 == 0:  # a signal for it, and no event of ptrace itself
                passed_on = os.WSTOPSIG(status)
            self._ptrace(SYSCALL, data=passed_on)


def write(file: Path, what: Any) -> None:
    """Write under another name first: whoever waits for the file shall find it whole."""
    file.with_suffix(".new").write_text(json.dumps(what))
    file.with_suffix(".new").rename(file)


class Ended(BaseException):
    """SIGTERM came."""


def main() -> None:
    """Count, and write what was counted."""
    file = Path(sys.argv[2])
    traced = Traced(int(sys.argv[1]))

    def end(*_: object) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, end)
    try:
        traced.begin()
    except OSError as fault:
        write(file, {"error": str(fault)})
        return
    try:
        write(file, "counting")
        traced.follow()
    except Ended:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write(file, {"calls": dict(traced.calls)})


if __name__ == "__main__":
    main()
