"""What Sluice costs, beside nginx, a Rust router and twenty lines of aiohttp: `make bench`.

    python -m tests.bench.compare [--quick] [--rounds 3] [--smg PROGRAM] [--json FILE]

Contenders take turns, round by round, so that a machine that drifts drifts for all of them. Figures are medians over
rounds; ratios are taken within a round. CPU is user and system time of all of a contender's processes. Only the ratios
carry over to another machine. Sluice runs with keys, all kinds of limits, prices, accounts, ledger and log; the others
do none of that.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import uvloop

from tests.bench import contenders, measures
from tests.bench.contenders import CORES, pinned, started
from tests.bench.load import KEY, Work, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.contenders import Contender, Server

SMG: Final = str(Path(sys.prefix).parent / ".venv-smg/bin/smg")
MANY_KEYS: Final = 100_000
FEW_KEYS: Final = 10
KEYS_IN_USE: Final = 1000


@dataclass
class Figures:
    """What was seen, by measure and contender, one figure a round."""

    units: dict[str, str] = field(default_factory=dict)
    seen: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, measure: str, unit: str, contender: str, figure: float) -> None:
        """Note a figure."""
        self.units[measure] = unit
        self.seen.setdefault(measure, {}).setdefault(contender, []).append(figure)

    def median(self, measure: str, contender: str) -> float | None:
        """The figure of a contender, if there is one."""
        figures = self.seen[measure].get(contender)
        return statistics.median(figures) if figures else None

    def ratio(self, measure: str, contender: str) -> float | None:
        """How many times that of the contender Sluice's figure is: the median over the rounds, each by itself."""
        theirs, ours = self.seen[measure].get(contender, []), self.seen[measure].get("sluice", [])
        ratios = [our / their for our, their in zip(ours, theirs, strict=False) if their > 0]
        return statistics.median(ratios) if ratios else None

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            measure: {
                "unit": self.units[measure],
                "rounds": by_contender,
                "median": {name: self.median(measure, name) for name in by_contender},
                "sluice_to": {name: self.ratio(measure, name) for name in by_contender if name != "sluice"},
            }
            for measure, by_contender in self.seen.items()
        }


def makers(upstream: int, folder: Path, smg: str) -> dict[str, Callable[[], Contender]]:
    """How to make each contender that is there."""
    ways: dict[str, Callable[[], Contender | None]] = {
        "sluice": lambda: contenders.sluice(upstream, folder),
        "nginx": lambda: contenders.nginx(upstream, folder),
        "smg": lambda: contenders.smg(upstream, smg),
        "plain aiohttp": lambda: contenders.plain(upstream),
    }
    missing = [name for name, make in ways.items() if make() is None]
    for name in missing:
        print(f"{name} is not installed and left out")
    return {name: make for name, make in ways.items() if name not in missing}  # type: ignore[misc]  # none is None


async def turns(servers: dict[str, Server], direct: int, figures: Figures, args: argparse.Namespace) -> None:
    """CPU and memory of each contender, and the time they add to a first byte."""
    for name, server in servers.items():
        figures.add("memory of an idle server", "MiB", name, server.rss_bytes() / 2**20)
    works = measures.cpu_works(args.scale)
    for work in measures.cpu_works(0.1):
        for server in servers.values():
            await measures.cpu_us(server, work)  # a warm-up
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", flush=True)
        for work in works:
            for name, server in servers.items():
                figures.add(
                    f"CPU of a{'n' * work.is_by_event} {work.name}",
                    work.unit,
                    name,
                    await measures.cpu_us(server, work),
                )
        ports = {name: server.port for name, server in servers.items()}
        seen = await measures.first_byte_ms({"direct": direct, **ports}, max(int(500 * args.scale), 100))
        for name in servers:
            half, most = measures.added(seen, name)
            figures.add("added to the first byte, median", "ms", name, half)
            figures.add("added to the first byte, 99th percentile", "ms", name, most)
    for name, server in servers.items():
        silent, stuck = await measures.stream_kib(server, int(1000 * args.scale), max(int(100 * args.scale), 20))
        figures.add("memory of a silent stream", "KiB", name, silent)
        figures.add("memory of a stuck stream", "KiB", name, stuck)


def keys(upstream: int, folder: Path, figures: Figures, args: argparse.Namespace) -> None:
    """What a request costs when there are many keys, beside what it costs with few."""
    servers: dict[int, tuple[Server, tuple[str, ...]]] = {}
    with contextlib.ExitStack() as stack:
        for count in (FEW_KEYS, MANY_KEYS):
            every = tuple(f"{KEY}-{number:06}" for number in range(count))
            made = contenders.sluice(upstream, folder, every)
            server = stack.enter_context(started(made.command, made.port, CORES[0], folder))
            servers[count] = server, every[:: max(count // KEYS_IN_USE, 1)]
        work = Work("mock-1-0", max(int(6000 * args.scale), 2 * KEYS_IN_USE), 50)
        for number in range(args.rounds + 1):
            used_s = {
                count: uvloop.run(requests_s(server, work, in_use)) for count, (server, in_use) in servers.items()
            }
            if number:  # the first is a warm-up
                ratio = used_s[MANY_KEYS] / used_s[FEW_KEYS]
                figures.add(f"CPU of a request, {MANY_KEYS:,} keys to {FEW_KEYS}", "ratio", "sluice", ratio)
        figures.add(f"memory with {MANY_KEYS:,} keys", "MiB", "sluice", servers[MANY_KEYS][0].rss_bytes() / 2**20)


async def requests_s(server: Server, work: Work, keys: tuple[str, ...]) -> float:
    """Seconds of CPU that the work took, the keys in turns."""
    before_s = server.cpu_s()
    await drive(server.port, work, keys)
    return server.cpu_s() - before_s


def compare(folder: Path, args: argparse.Namespace) -> tuple[Figures, dict[str, str]]:
    """All figures, and the versions of what was measured."""
    figures = Figures()
    with contenders.upstream(folder) as upstream, pinned(CORES[-1]):
        makes = makers(upstream, folder, args.smg)
        made = {name: make() for name, make in makes.items()}
        with contextlib.ExitStack() as stack:
            servers = {
                name: stack.enter_context(started(one.command, one.port, CORES[0], folder))
                for name, one in made.items()
            }
            for server in servers.values():
                uvloop.run(measures.answering(server))
            uvloop.run(turns(servers, upstream, figures, args))
        for _ in range(args.rounds):
            for name, make in makes.items():
                figures.add("start to first answer", "s", name, uvloop.run(measures.start_s(make(), folder)))
        if args.keys:
            keys(upstream, folder, figures, args)
    return figures, {name: one.version for name, one in made.items()}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": len(CORES),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def table(figures: Figures, names: list[str]) -> Iterator[str]:
    """The table, in Markdown."""
    others = [name for name in names if name != "sluice"]
    yield f"| | Sluice | {' | '.join(others)} |"
    yield f"|---|---{'|---' * len(others)}|"
    for measure in figures.seen:
        cells = []
        for name in others:
            figure, ratio = figures.median(measure, name), figures.ratio(measure, name)
            times = "" if ratio is None else f" (x {ratio:.2f})"
            cells.append("" if figure is None else shown(figure) + times)
        ours = figures.median(measure, "sluice")
        yield f"| {measure}, {figures.units[measure]} | {'' if ours is None else shown(ours)} | {' | '.join(cells)} |"


def shown(figure: float) -> str:
    """A figure with as many digits as mean something."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small round, without the many keys")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the work of a round")
    parser.add_argument("--smg", default=SMG, help="the program of smg, from a virtual environment of its own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    args = parser.parse_args()
    args.keys = not args.quick
    if args.quick:
        args.rounds, args.scale = 1, 0.2
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        figures, versions = compare(Path(folder), args)
    date = dt.datetime.now(dt.UTC).date().isoformat()
    compared = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"\n{date}, {about['processor']}, {about['cores']} cores, Python {about['python']}; {compared}")
    print("in parentheses: how many times theirs Sluice's figure is\n")
    print("\n".join(table(figures, list(versions))))
    if args.quick:
        print(
            "\none small round: of the times of CPU not even the ratios are good for much; leave out --quick for that"
        )
    if args.json is not None:
        said = {"date": date, "machine": about, "versions": versions, "figures": figures.as_json()}
        args.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
