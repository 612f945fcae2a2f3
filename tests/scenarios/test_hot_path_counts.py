"""The guard of the hot path: how many bytecodes, calls and system calls a request, a stream and an event take.

Counts, since they are the same on every machine and at every load, where times are not. What is counted is the event
loop's thread of a worker with everything on: our own code, the server's and the standard library's.

When a test here fails, the path has gained a step: take it away again, or show what it is worth and raise the figure.
When the path got shorter, lower the figure, so that the gain is kept. `python -m tests.bench.counts` prints what each
function takes.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.fakes.counting import counted

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.counting import Counts


EVENT_SYSTEM_CALLS: Final = 2.0  # it is read from the upstream, and written to the client


class Taken(NamedTuple):
    """What a unit takes."""

    bytecodes: int
    calls: float


# measured; bytecodes are those of a version of Python, calls hardly differ between versions
CALLS_OF: Final = (3, 11)
MEASURED: Final = {
    (3, 11): {
        "request": Taken(bytecodes=7_285, calls=216),
        "stream": Taken(bytecodes=13_169, calls=395),
        "burst": Taken(bytecodes=9_251, calls=278),
        "event": Taken(bytecodes=212, calls=3.79),
    }
}
HEADROOM: Final = 1.03  # a timer that fires meanwhile, a pool that is tidied up
HEADROOM_OF_OTHER_VERSIONS: Final = 1.15
TRIES: Final = 10


def over(counts: Counts) -> list[str]:
    """What is more than it was."""
    version = sys.version_info[:2]
    known = MEASURED.get(version)
    faults = []
    if known is not None and counts.bytecodes > known[counts.unit].bytecodes * HEADROOM:
        faults.append(f"bytecodes: {counts.bytecodes:.0f}, were {known[counts.unit].bytecodes}")
    headroom = HEADROOM if known is not None else HEADROOM_OF_OTHER_VERSIONS
    calls = (known or MEASURED[CALLS_OF])[counts.unit].calls
    if counts.calls > calls * headroom:
        faults.append(f"calls: {counts.calls:.1f}, were {calls}")
    return faults


async def test_the_usual_paths_take_no_more_steps_than_they_did(tmp_path: Path) -> None:
    """A request, a short stream, one in one read and an event, each by itself; what seems to be over is counted again.

    A worker that waits for a processor finds timers due more often, and its ledger's thread behind its upstream.
    """
    async with counted(tmp_path) as on:
        ways = [
            functools.partial(on.requests, 60),
            functools.partial(on.streams, 30),
            functools.partial(on.bursts, 30),
            functools.partial(on.events, 200),
        ]
        seen = [await way() for way in ways]
        for _ in range(TRIES):
            seen = [await way() if over(counts) else counts for way, counts in zip(ways, seen, strict=True)]
    for counts in seen:
        print(f"{counts.unit}: {counts.bytecodes:.1f} bytecodes, {counts.calls:.2f} calls")
    faults = {counts.unit: over(counts) for counts in seen}
    assert not any(faults.values()), f"{faults}\n" + "\n\n".join(one.top(25) for one in seen if faults[one.unit])


@pytest.mark.skipif(sys.platform != "linux", reason="counted with ptrace(2)")
async def test_an_event_is_read_and_written_and_nothing_else(tmp_path: Path) -> None:
    """A system call more for each event is what a profile of Python does not show."""
    most = EVENT_SYSTEM_CALLS + 0.5  # one at times wakes or waits for another thread
    async with counted(tmp_path) as on:
        seen = await on.system_calls(100)
        for _ in range(TRIES):
            seen = await on.system_calls(100) if isinstance(seen, float) and seen > most else seen
    print(f"system calls of an event: {seen}")
    if isinstance(seen, str):
        pytest.skip(f"this system does not let them be counted: {seen}")
    assert seen <= most
