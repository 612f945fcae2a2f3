"""What a request, a short stream, one that comes at once and an event take in bytecodes and Python calls, by function.

    python -m tests.bench.counts [request] [stream] [burst] [event] [--rows 40]

Counts are the same on an idle machine and on a busy one: for finding what to make shorter, and for the figures of
tests/scenarios/test_hot_path_counts.py. Only the thread of the event loop is counted; a bytecode takes 20 to 25 ns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from tests.fakes.counting import counted

if TYPE_CHECKING:
    from tests.fakes.counting import Counts


async def measure(units: list[str]) -> list[Counts]:
    """The counts of the units, each by itself."""
    with tempfile.TemporaryDirectory() as folder:
        async with counted(Path(folder)) as on:
            ways = {
                "request": lambda: on.requests(100),
                "stream": lambda: on.streams(50),
                "burst": lambda: on.bursts(50),
                "event": lambda: on.events(300),
            }
            return [await ways[unit]() for unit in units]


def show(counts: Counts, rows: int) -> None:
    """Print them by file and by function."""
    files: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for function in counts.functions:
        files[function.file][0] += function.bytecodes
        files[function.file][1] += function.calls
    print(counts.top(rows), end="\n\n")
    for file, (bytecodes, calls) in sorted(files.items(), key=lambda pair: -pair[1][0])[: rows // 2]:
        print(f"{bytecodes:9.1f} bytecodes {calls:7.2f} calls  {file}")
    print()


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unit", nargs="*", help="request, stream, burst (a stream in one read), event; all by default")
    parser.add_argument("--rows", type=int, default=40, help="functions; half as many files")
    args = parser.parse_args()
    known = ["request", "stream", "burst", "event"]
    if not set(args.unit) <= set(known):
        parser.error(f"units are {', '.join(known)}")
    seen = uvloop.run(measure(args.unit or known))
    for counts in seen:
        show(counts, args.rows)
    for counts in seen:
        print(f"{counts.unit}: {counts.bytecodes:.1f} bytecodes, {counts.calls:.2f} calls")


if __name__ == "__main__":
    main()
