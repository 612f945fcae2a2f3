"""Whether anything grows: hundreds of thousands of requests and millions of events through one worker.

    python -m tests.bench.soak [--requests 200000] [--events 5000000] [--slices 12] [--tracemalloc] [--json FILE]

Everything is on. Some clients leave in the middle, stop reading for a while, bring a wrong key or a broken body, and
some answers are errors. The work is done in equal slices; after each one, with nothing in flight, the worker is asked
what it holds: resident memory, blocks of Python's allocator, objects by type. The first third of the slices is
warm-up. It fails when the last third holds more than the second one did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from tests.bench.contenders import CORES, configuration, free_port, pinned, started, upstream
from tests.bench.load import Caller, payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.contenders import Server

EVENTS_A_STREAM: Final = 100
AT_ONCE: Final = 50
SETTLED_S: Final = 60.0
# of a hundred streams and of a hundred requests
LEAVING, SLOW, FAILING, WRONG_KEY, BROKEN = 5, 2, 2, 1, 1
# one block for each exchange of a slice would be ten times as much
MAX_MORE_BLOCKS: Final = 1500
MAX_MORE_RSS: Final = 0.03
STREAM: Final = payload(f"mock-{EVENTS_A_STREAM}-1000", stream=True)
REQUEST: Final = payload("mock-1-0", stream=False)
ERROR: Final = payload("mock-error", stream=False)
UNKNOWN: Final = payload("mock-1-0", stream=False, key="sk-nobody-knows-this-one")


@dataclass
class Held:
    """What the worker holds after a slice, and what the slice took."""

    exchanges: int
    rss_mib: float
    blocks: int
    traced_mib: float | None
    slice_s: float
    cpu_s: float
    objects: dict[str, int]


class Soak:
    """A worker and what goes through it."""

    def __init__(self, server: Server, ops_port: int, file: Path, seed: int) -> None:
        self._server = server
        self._ops_port = ops_port
        self._file = file
        self._random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    async def slice(self, requests: int, streams: int) -> Held:
        """Let so much through, wait until it is over and accounted for, and look."""
        began_s, used_s = time.monotonic(), self._server.cpu_s()
        kinds = ["stream"] * streams + ["request"] * requests
        self._random.shuffle(kinds)
        work = iter(kinds)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._client(work))
        took_s, cpu_s = time.monotonic() - began_s, self._server.cpu_s() - used_s
        await self._nothing_left()
        return await self._look(took_s, cpu_s)

    async def _client(self, work: Iterator[str]) -> None:
        caller = await self._connect()
        for kind in work:
            dice = self._random.randrange(100)
            if kind == "stream":
                caller = await self._stream(caller, dice)
            else:
                request, status = self._question(dice)
                answer = await caller.ask(request)
                self._count(f"answered {status}", good=answer.status == status and answer.is_whole, but=answer.status)
            if caller.is_lost:
                caller = await self._connect()
        caller.close()

    async def _connect(self, **how: Any) -> Caller:
        return await Caller.connect(self._server.port, **how)

    def _question(self, dice: int) -> tuple[bytes, int]:
        if dice < FAILING:
            return ERROR, 500
        if dice < FAILING + WRONG_KEY:
            return UNKNOWN, 401
        if dice < FAILING + WRONG_KEY + BROKEN:
            return REQUEST.replace(b'{"model"', b'["model"'), 400
        return REQUEST, 200

    async def _stream(self, caller: Caller, dice: int) -> Caller:
        if dice >= LEAVING + SLOW:
            answer = await caller.ask(STREAM)
            self._count("streamed", good=answer.is_whole and answer.events >= EVENTS_A_STREAM)
            return caller
        caller.close()
        if dice < LEAVING:
            leaving = await self._connect(leave_after=1 + self._random.randrange(EVENTS_A_STREAM // 2))
            answer = await leaving.ask(STREAM)
            # all of it may have come at once
            self._count("left", good=answer.status == 200 and answer.events > 0)
            return leaving
        slow = await self._connect(pause_s=0.2)
        answer = await slow.ask(STREAM)
        self._count("read slowly", good=answer.is_whole and answer.events >= EVENTS_A_STREAM)
        slow.close()
        return slow

    def _count(self, what: str, *, good: bool, but: object = "") -> None:
        self.outcomes[what if good else f"NOT {what} {but}".rstrip()] += 1

    async def _nothing_left(self) -> None:
        deadline_s = time.monotonic() + SETTLED_S
        while True:
            metrics = await asyncio.to_thread(self._metrics)
            left = sum(metrics.get(name, 0) for name in ("sluice_exchanges_in_flight", "sluice_ledger_queue"))
            if not left:
                return
            if time.monotonic() > deadline_s:
                sys.exit(f"after {SETTLED_S:.0f} s there are still {left:.0f} exchanges or rows")
            await asyncio.sleep(0.1)

    def _metrics(self) -> Counter[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ops_port}/metrics") as answer:
            text = answer.read().decode()
        sums: Counter[str] = Counter()
        for name, value in re.findall(r"^(\w+)(?:\{.*\})? ([\d.e+-]+)$", text, re.MULTILINE):
            sums[name] += float(value)  # type: ignore[assignment]  # a Counter adds floats as well
        return sums

    async def _look(self, took_s: float, cpu_s: float) -> Held:
        self._file.unlink(missing_ok=True)
        self._server.process.send_signal(signal.SIGUSR1)
        while not self._file.exists():
            await asyncio.sleep(0.05)
        seen = json.loads(self._file.read_text())
        traced = seen["traced_bytes"]
        return Held(
            exchanges=self.outcomes.total(),
            rss_mib=self._server.rss_bytes() / 2**20,
            blocks=seen["blocks"],
            traced_mib=None if traced is None else traced / 2**20,
            slice_s=took_s,
            cpu_s=cpu_s,
            objects=seen["objects"],
        )


@contextlib.contextmanager
def worker(folder: Path, *, traces: bool) -> Iterator[tuple[Server, int, Path]]:
    """A watched worker before the upstream; the port of its operators, and the file it writes to."""
    seen = folder / "seen.json"
    with upstream(folder) as upstream_port:
        port = free_port()
        config = configuration(upstream_port, folder, port, free_port())
        config["server"]["auth_failures"] = None  # all wrong keys come from one address here
        config["breaker"] = {"failures": 10**6, "least_results": 10**6}  # and all errors from one upstream
        file = folder / "sluice.json"
        file.write_text(json.dumps(config))
        os.environ |= {"WATCHED": str(seen), "WATCHED_TRACEMALLOC": "1" if traces else ""}
        command = [sys.executable, "-m", "tests.bench.watched", "serve", "--config", str(file)]
        with started(command, port, CORES[0], folder) as server:
            yield server, config["ops"]["port"], seen


async def run(server: Server, ops_port: int, file: Path, args: argparse.Namespace) -> tuple[list[Held], Counter[str]]:
    """All slices; what was held after each, and what became of the exchanges."""
    soak = Soak(server, ops_port, file, args.seed)
    streams = args.events // EVENTS_A_STREAM
    print(f"seed {args.seed}")
    print(f"{'exchanges':>10}{'RSS MiB':>9}{'blocks':>9}{'objects':>9}{'traced MiB':>12}{'s':>7}{'CPU s':>7}")
    held = []
    for _ in range(args.slices):
        now = await soak.slice((args.requests - streams) // args.slices, streams // args.slices)
        traced = "" if now.traced_mib is None else f"{now.traced_mib:.2f}"
        print(
            f"{now.exchanges:>10}{now.rss_mib:>9.1f}{now.blocks:>9}{sum(now.objects.values()):>9}{traced:>12}"
            f"{now.slice_s:>7.1f}{now.cpu_s:>7.1f}",
            flush=True,
        )
        held.append(now)
    return held, soak.outcomes


def growth(held: list[Held]) -> list[str]:
    """What grew between the second and the last third of the slices."""
    third = len(held) // 3
    before, after = held[third : 2 * third], held[-third:]
    faults = []
    more = statistics.median(one.blocks for one in after) - statistics.median(one.blocks for one in before)
    if more > MAX_MORE_BLOCKS:
        kinds = Counter(after[-1].objects)
        kinds.subtract(before[0].objects)
        faults.append(f"{more:.0f} more blocks; objects: {kinds.most_common(8)}")
    rss_before, rss_after = (statistics.median(one.rss_mib for one in part) for part in (before, after))
    if rss_after > rss_before * (1 + MAX_MORE_RSS):
        faults.append(f"resident memory from {rss_before:.1f} to {rss_after:.1f} MiB")
    return faults


def main() -> int:
    """Soak, print, and write JSON where asked; 1 when something grew or an answer was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="exchanges in all, streams among them")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--tracemalloc", action="store_true", help="also by bytes; takes several times as long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.slices < 3 or args.requests < args.events // EVENTS_A_STREAM:
        parser.error(f"it takes three slices, and a request for every {EVENTS_A_STREAM} events")
    with (
        tempfile.TemporaryDirectory() as folder,
        worker(Path(folder), traces=args.tracemalloc) as place,
        pinned(CORES[-1]),
    ):
        held, outcomes = uvloop.run(run(*place, args))
    print(", ".join(f"{count} {what}" for what, count in outcomes.most_common()))
    faults = growth(held) + [f"{count} were {what}" for what, count in outcomes.items() if what.startswith("NOT")]
    print("\n".join(faults) or "nothing grew beyond what is allowed (see `growth`)")
    if args.json is not None:
        args.json.write_text(json.dumps({"held": [asdict(one) for one in held], "faults": faults}, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
