"""What operators see of several workers: whether all are ready, and metrics that never fall."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from proxy.admin.inside import Answers, SetDrained, packed, with_drained
from proxy.core.restarts import Restarts
from proxy.telemetry.merging import Merged, Snapshots, unpack

if TYPE_CHECKING:
    from proxy.admin.inside import Question
    from proxy.child import Child
    from proxy.tasks import BackgroundTasks
    from proxy.telemetry.metrics import Metrics

# a scrape waits no longer for a worker, and shows what it last had of it
_SCRAPE_S: Final = 1.0
# what a worker counted since it was last asked dies with it; asking may take a twentieth of the time
_ASK_EVERY_S: Final = 2.0
_ASK_SHARE: Final = 0.05


class Fleet:
    """The workers by their numbers, from 1 to `size`, and what the dead left behind. `metrics` are the supervisor's."""

    def __init__(self, size: int, metrics: Metrics, tasks: BackgroundTasks) -> None:
        self.is_draining = False
        self.children: dict[int, Child] = {}
        self.restarts = {number: Restarts() for number in range(1, size + 1)}
        self.drained: set[str] = set()  # upstreams that get no new exchange
        self._drain_turn = asyncio.Lock()
        self._metrics = metrics
        self._tasks = tasks
        self._merged = Merged()
        self._pulls: dict[int, asyncio.Task[None]] = {}
        registry = CollectorRegistry()
        self._snapshots = Snapshots(registry)
        self._deaths = Counter("sluice_worker_deaths_total", "Workers that ended unasked.", registry=registry)
        ready = Gauge("sluice_workers", "Workers that accept connections.", registry=registry)
        ready.set_function(lambda: sum(child.is_ready for child in list(self.children.values())))

    @property
    def is_whole(self) -> bool:
        """Whether every worker accepts connections."""
        return all(number in self.children and self.children[number].is_ready for number in self.restarts)

    def joined(self, child: Child) -> None:
        """A worker's process was started."""
        self.children[child.number] = child

    def accepts(self, child: Child) -> None:
        """A worker accepts connections: ask it now and then what it has counted."""
        self._tasks.keep(self._follow(child), "metrics")
        if child.drained != self.drained:  # changed while it started
            self._tasks.keep(self._catch_up(child), "drained")

    def left(self, child: Child) -> None:
        """A worker's process has ended; what it counted stays."""
        del self.children[child.number]
        if child.last_counts is not None:
            self._merged.keep(child.serial, child.last_counts)
        self._merged.retire(child.serial)

    def died(self, number: int, now_s: float, lived_s: float) -> float:
        """A worker ended unasked. How long to wait before another takes its place, in seconds."""
        self._deaths.inc()
        return self.restarts[number].died(now_s, lived_s)

    async def ask(self, question: Question) -> Answers:
        """Ask all workers that accept connections."""
        return await self._ask_inside(question, [child for child in self.children.values() if child.is_ready])

    async def drain(self, upstream: str, *, is_drained: bool) -> Answers:
        """Give an upstream no new exchange, or let it back: in all workers, those that are started later included."""
        async with self._drain_turn:
            self.drained = set(with_drained(self.drained, upstream, is_drained=is_drained))
            return await self.ask(self._which_drained())

    def _which_drained(self) -> SetDrained:
        return SetDrained(tuple(sorted(self.drained)))

    async def _catch_up(self, child: Child) -> None:
        async with self._drain_turn:
            await self._ask_inside(self._which_drained(), [child])

    async def _ask_inside(self, question: Question, children: list[Child]) -> Answers:
        found = Answers({}, [])
        data = packed(question)
        for child, told in zip(children, await asyncio.gather(*(one.inside(data) for one in children)), strict=True):
            if told is not None:
                found.by_worker[child.number] = told
            elif child.is_ready:
                found.silent.append(child.number)
        return found

    async def problems(self) -> list[str]:
        """What keeps the workers from being ready."""
        now_s = asyncio.get_running_loop().time()
        found = ["draining"] if self.is_draining else []
        for number, restarts in self.restarts.items():
            if number not in self.children:
                found.append(f"worker {number} is not running")
            if restarts.is_loop(now_s):
                found.append(f"worker {number} dies again and again")
        for asked in await asyncio.gather(*(child.problems() for child in self.children.values())):
            found += asked
        return found

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all workers, and their content type."""
        pulls = [self._pull(child) for child in self.children.values() if child.is_ready]
        if pulls:
            await asyncio.wait(pulls, timeout=_SCRAPE_S)
        return await asyncio.to_thread(self._render, accept)

    def _render(self, accept: str) -> tuple[bytes, str]:
        return self._merged.render(accept, [unpack(self._metrics.snapshot()), self._snapshots.take()])

    async def _follow(self, child: Child) -> None:
        """Ask a worker for what it has counted, for as long as it lives."""
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while not await child.is_over(pause_s):
            began_s = loop.time()
            await self._pull(child)
            pause_s = max(_ASK_EVERY_S, (loop.time() - began_s) / _ASK_SHARE)

    def _pull(self, child: Child) -> asyncio.Task[None]:
        """One question at a time, so that no answer is overtaken by an older one."""
        pull = self._pulls.get(child.serial)
        if pull is None:
            pull = self._pulls[child.serial] = self._tasks.start(self._ask(child), "snapshot")
            pull.add_done_callback(functools.partial(self._pulled, child.serial))
        return pull

    def _pulled(self, serial: int, _: asyncio.Task[None]) -> None:
        del self._pulls[serial]

    async def _ask(self, child: Child) -> None:
        counts = await child.counts()
        if counts is not None and child.is_ready:  # its last words may have come meanwhile
            self._merged.keep(child.serial, counts)
