"""How many streams a worker holds, and what storms of connections do to it.

    python -m tests.bench.streams [--streams N] [--workers 1] [--hold 15] [--json FILE]
    python -m tests.bench.streams --storm 2000 [--seconds 5] [--cap 1000]

Streams: as many slow ones as descriptors allow (one event in two seconds), all open at once, every one to be whole at
its end. More than one worker needs a Redis, which is started. Storm: so many connections a second, each held for half a
second, while a hundred paced streams go on; then the same with no more connections allowed than `--cap`: those beyond
it must be told so, and the next one after the storm must be served. `sluice_event_loop_lag_seconds` says whether the
event loop stood still.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import re
import resource
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from tests.bench.contenders import CORES, configuration, free_port, pinned, started, upstream
from tests.bench.load import Caller, Work, drive, payload
from tests.fakes.redis import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.contenders import Server

OPENED_A_SECOND: Final = 400
INTERVAL_S: Final = 2
DESCRIPTORS_OF_A_STREAM: Final = 2
SPARE: Final = 200  # as the worker itself reckons
HELD_S: Final = 0.5
STALL_S: Final = 0.05
BESIDE: Final = 100
REFUSED_CODE: Final = b'"too_many_connections"'


def most_streams(workers: int) -> tuple[int, str]:
    """How many streams can be held, and what does not allow more."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    of_workers = (hard - SPARE) // DESCRIPTORS_OF_A_STREAM * workers
    of_client = hard - SPARE  # and of the upstream
    if workers > 1:
        of_workers = of_workers * 3 // 4  # whoever is quicker accepts: they do not get equally many
    if of_client < of_workers:
        return of_client, f"RLIMIT_NOFILE {hard} of the load client and of the upstream, one descriptor a stream"
    return of_workers, f"RLIMIT_NOFILE {hard} of each worker, two descriptors a stream and {SPARE} besides"


class Scraped:
    """What `/metrics` says."""

    def __init__(self, ops_port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{ops_port}/metrics") as answer:
            self._text = answer.read().decode()

    def total(self, name: str, labels: str = "") -> float:
        """The sum of a metric over the label sets that hold `labels`."""
        found = re.findall(rf"^{name}(\{{.*\}})? ([\d.e+-]+)$", self._text, re.MULTILINE)
        return sum(float(value) for seen, value in found if labels in seen)

    def stalls(self) -> float:
        """How often a timer was more than 50 ms late."""
        name = "sluice_event_loop_lag_seconds"
        return self.total(f"{name}_count") - self.total(f"{name}_bucket", f'le="{STALL_S}"')

    def worst_s(self, earlier: Scraped) -> float:
        """The bound that no lag was above since an `earlier` look."""
        name = "sluice_event_loop_lag_seconds"
        bounds = sorted(set(re.findall(rf'^{name}_bucket{{.*le="([\d.]+)"', self._text, re.MULTILINE)), key=float)
        for bound in bounds:
            above, above_before = (
                one.total(f"{name}_count") - one.total(f"{name}_bucket", f'le="{bound}"') for one in (self, earlier)
            )
            if above <= above_before:
                return float(bound)
        return math.inf


@contextlib.contextmanager
def proxy(folder: Path, **server_settings: Any) -> Iterator[tuple[Server, int]]:
    """A proxy with everything on, and the port of its operators."""
    with contextlib.ExitStack() as stack:
        port, ops_port = free_port(), free_port()
        config = configuration(stack.enter_context(upstream(folder)), folder, port, ops_port)
        config["server"] |= {"max_connections": 10**6, **server_settings}
        config["log"]["level"] = "warning"
        if server_settings.get("workers", 1) > 1:
            config["store"] = {"url": stack.enter_context(running_redis()).url}
        file = folder / "sluice.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(file)]
        yield stack.enter_context(started(command, port, CORES[0], folder)), ops_port


async def warmed_up(server: Server, ops_port: int) -> Scraped:
    """What `/metrics` says after everything has happened that happens once."""
    await drive(server.port, Work("mock-10-0", 50, 10, events=10))
    return await asyncio.to_thread(Scraped, ops_port)


async def hold(server: Server, ops_port: int, count: int, hold_s: float) -> dict[str, Any]:
    """Open so many streams, hold them, and take them to their ends."""
    earlier = await warmed_up(server, ops_port)
    ramp_s = count / OPENED_A_SECOND
    events = math.ceil((ramp_s * 1.5 + hold_s) / INTERVAL_S)
    request = payload(f"mock-{events}-{INTERVAL_S * 1_000_000}", stream=True)
    seen: Counter[str] = Counter()
    before = server.rss_bytes()

    async def stream() -> None:
        try:
            caller = await Caller.connect(server.port)
        except OSError as fault:
            seen[f"not connected: {fault}"] += 1
            return
        answer = await caller.ask(request)
        caller.close()
        whole = answer.is_whole and answer.events >= events + 2 and answer.tail.endswith(b"[DONE]\n\n")
        seen["whole" if whole else f"broken, status {answer.status}"] += 1

    async with asyncio.TaskGroup() as group:
        began_s = time.monotonic()
        for number in range(count):
            group.create_task(stream())
            await asyncio.sleep(max(0.0, began_s + number / OPENED_A_SECOND - time.monotonic()))
        at_once, deadline_s = 0.0, time.monotonic() + hold_s
        while at_once < count and time.monotonic() < deadline_s:  # the last ones may still be on their way
            await asyncio.sleep(1)
            at_once = (await asyncio.to_thread(Scraped, ops_port)).total("sluice_exchanges_in_flight")
        kib = (server.rss_bytes() - before) / max(at_once, 1) / 1024
    after = await asyncio.to_thread(Scraped, ops_port)
    return {
        "streams": count,
        "at_once": at_once,
        "events_of_each": events,
        "became": dict(seen),
        "kib_a_stream": round(kib, 1),
        "worst_lag_below_s": after.worst_s(earlier),
        "lags_above_50_ms": after.stalls() - earlier.stalls(),
    }


async def storm(server: Server, ops_port: int, a_second: int, seconds: float) -> dict[str, Any]:
    """Connect so often; what the connections met, and what it did to streams beside them."""
    earlier = await warmed_up(server, ops_port)
    seen: Counter[str] = Counter()
    events = int((seconds + 2) * 10)
    request = payload(f"mock-{events}-100000", stream=True)

    async def beside() -> None:
        caller = await Caller.connect(server.port)
        answer = await caller.ask(request)
        caller.close()
        seen["streams whole" if answer.is_whole and answer.events >= events else "streams broken"] += 1

    async def connection() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError as fault:
            seen[f"not connected: {fault}"] += 1
            return
        try:
            said = await asyncio.wait_for(reader.read(), HELD_S)
            seen["refused" if said.startswith(b"HTTP/1.1 503") and REFUSED_CODE in said else f"met {said!r}"] += 1
        except TimeoutError:
            seen["held"] += 1
        except OSError as fault:
            seen[f"met {fault!r}"] += 1
        finally:
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(BESIDE):
            group.create_task(beside())
        await asyncio.sleep(1)
        began_s = time.monotonic()
        for number in range(int(a_second * seconds)):
            group.create_task(connection())
            await asyncio.sleep(max(0.0, began_s + number / a_second - time.monotonic()))
        took_s = time.monotonic() - began_s
    after = await asyncio.to_thread(Scraped, ops_port)
    caller = await Caller.connect(server.port)
    answer = await caller.ask(payload("mock-1-0", stream=False))
    caller.close()
    return {
        "connections_a_second": round(a_second * seconds / took_s),
        "became": dict(seen),
        "answered_afterwards": answer.status,
        "worst_lag_below_s": after.worst_s(earlier),
        "lags_above_50_ms": after.stalls() - earlier.stalls(),
    }


def run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; its figures."""
    said: dict[str, Any] = {}
    if args.storm:
        with proxy(folder) as (server, ops_port):
            said["storm"] = uvloop.run(storm(server, ops_port, args.storm, args.seconds))
        with proxy(folder, max_connections=args.cap) as (server, ops_port):
            said[f"storm, at most {args.cap}"] = uvloop.run(storm(server, ops_port, args.storm, args.seconds))
        return said
    most, limit = most_streams(args.workers)
    count = args.streams or most
    said["limit"] = limit if count == most else f"{count} were asked for; {most} are the most: {limit}"
    with proxy(folder, workers=args.workers) as (server, ops_port):
        said[f"streams, workers: {args.workers}"] = uvloop.run(hold(server, ops_port, count, args.hold))
    return said


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, help="as many as descriptors allow by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hold", type=float, default=15, help="seconds with all of them open")
    parser.add_argument("--storm", type=int, help="connections a second, instead of streams")
    parser.add_argument("--seconds", type=float, default=5, help="of the storm")
    parser.add_argument("--cap", type=int, default=1000, help="connections allowed in the second storm")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pinned(CORES[-1]):
        said = run(Path(folder), args)
    print(json.dumps(said, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
