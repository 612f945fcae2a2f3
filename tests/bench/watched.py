"""`sluice`, watched from within: on SIGUSR1 it writes what its interpreter holds to the file that WATCHED names.

    WATCHED=FILE [WATCHED_TRACEMALLOC=1] python -m tests.bench.watched serve --config …

`blocks` are those of Python's allocator, `objects` those that the garbage collector knows, by type; with tracemalloc
also the bytes that Python code allocated, by line. All after a collection, so that what is left is held by something.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import signal
import sys
import tracemalloc
from pathlib import Path

from proxy.cli import main

LINES = 25


def write(*_: object) -> None:
    """Write what is held, under another name first: whoever waits for the file shall find it whole."""
    gc.collect()
    seen = {
        "blocks": sys.getallocatedblocks(),
        "objects": dict(collections.Counter(type(one).__name__ for one in gc.get_objects()).most_common()),
        "traced_bytes": None,
        "lines": {},
    }
    if tracemalloc.is_tracing():
        seen["traced_bytes"] = tracemalloc.get_traced_memory()[0]
        top = tracemalloc.take_snapshot().statistics("lineno")[:LINES]
        seen["lines"] = {str(one.traceback): one.size for one in top}
    file = Path(os.environ["WATCHED"])
    file.with_suffix(".new").write_text(json.dumps(seen))
    file.with_suffix(".new").rename(file)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, write)
    if os.environ.get("WATCHED_TRACEMALLOC"):
        tracemalloc.start()
    sys.argv[0] = "sluice"
    main()
