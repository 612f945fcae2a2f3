"""`sluice`, counting: executed bytecodes and Python calls of the event loop's thread, by function.

    COUNTED=FILE python -m tests.fakes.counted serve --config …

SIGUSR1 begins (the file then says "counting"), SIGUSR2 ends and writes the counts, a list of [file, function, calls,
bytecodes]. Counts tell what timings on a busy machine cannot: whether a path has gained a step.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli import main

if TYPE_CHECKING:
    from types import CodeType, FrameType

bytecodes: collections.Counter[CodeType] = collections.Counter()
calls: collections.Counter[CodeType] = collections.Counter()


def local(frame: FrameType, event: str, _: Any) -> Any:
    """Count a bytecode."""
    if event == "opcode":
        bytecodes[frame.f_code] += 1
    return local


def called(frame: FrameType, _event: str, _: Any) -> Any:
    """Count a call, or that a generator or coroutine goes on."""
    frame.f_trace_opcodes = True
    frame.f_trace_lines = False
    calls[frame.f_code] += 1
    return local


def write(what: object) -> None:
    """Write under another name first: whoever waits for the file shall find it whole."""
    file = Path(os.environ["COUNTED"])
    file.with_suffix(".new").write_text(json.dumps(what))
    file.with_suffix(".new").rename(file)


def begin(*_: object) -> None:
    """Count from now on."""
    bytecodes.clear()
    calls.clear()
    write("counting")
    sys.settrace(called)


def end(*_: object) -> None:
    """Count no more, and tell."""
    sys.settrace(None)
    own = {code for function in (begin, end, write) for code in [function.__code__]}
    rows = [
        (code.co_filename, code.co_qualname, calls[code], bytecodes[code])
        for code in calls.keys() | bytecodes.keys()
        if code not in own
    ]
    write(rows)


PR_SET_PTRACER = 0x59616D61  # prctl(2); a kernel without Yama does not know it, and does not need it
ANY_PROCESS = -1


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_long(ANY_PROCESS))
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    sys.argv[0] = "sluice"
    main()
