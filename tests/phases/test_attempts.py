"""Attempts over real sockets, cancelled at every await, hedged or not: no place, waiter or connection is left."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from proxy.core.retry import RetryPolicy
from proxy.phases import attempts as attempts_module
from proxy.phases.admit import Admission
from proxy.phases.attempts import Attempts
from proxy.phases.balancer import Balancer
from proxy.phases.hedging import Hedge
from proxy.phases.places import Ask, QueueLimits
from proxy.phases.route import Model, Route, Target
from proxy.tasks import BackgroundTasks
from proxy.telemetry.routing import RoutingMetrics
from proxy.upstream.connect import Origin
from proxy.upstream.pool import UpstreamPool
from tests.fakes.accounts import account
from tests.fakes.answering import AnsweringUpstream, chat, response
from tests.fakes.arrived import arrived, principal
from tests.fakes.cancelled import CancelledAt
from tests.fakes.routes import health, upstream
from tests.fakes.routing_stage import BODY, HoldingUpstream, script
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.phases.account import Account
    from proxy.phases.exchange import Phase
    from proxy.phases.forward import Answer
    from proxy.phases.route import Sending
    from proxy.phases.upstreams import Upstream

BROKEN = response(b'{"error":{}}', status=500)


def _nothing() -> None:
    """Nobody minds."""


class Stage:
    """Attempts at upstreams of a test, without a server before them. `b` serves one exchange at a time."""

    def __init__(self, first: AnsweringUpstream, second: AnsweringUpstream, *, hedged: bool) -> None:
        clock, draw = time.monotonic, random.Random(1).random
        self.tasks = BackgroundTasks()
        metrics = RoutingMetrics(CollectorRegistry())
        self.balancer = Balancer(QueueLimits(10, 100_000, 30.0), metrics, clock, draw)
        self.attempts = Attempts(
            self.balancer,
            RetryPolicy(attempts=3, backoff_s=0.001, max_backoff_s=1.0),
            via=b"1.1 test",
            tasks=self.tasks,
            metrics=metrics,
            write_stall_s=None,
            hedge=Hedge(0.005, self.tasks) if hedged else None,
            clock=clock,
            unix_clock=lambda: 0.0,
            draw=draw,
        )
        self.upstreams = [self._upstream("a", first.port, None), self._upstream("b", second.port, 1)]
        self.routes = tuple(Route(up, priority=index) for index, up in enumerate(self.upstreams))
        self.accounts: list[Account] = []
        self.is_hedged = hedged

    @staticmethod
    def _upstream(name: str, port: int, max_concurrency: int | None) -> Upstream:
        pool = UpstreamPool(Origin("127.0.0.1", port, None, None, None), connect_timeout_s=5.0)
        condition = health(1, max_concurrency, failures=10**6, least_results=10**6)
        return upstream(name, pool=pool, health=condition, api_keys=[b"k"])

    async def answer(self) -> tuple[Sending, Answer]:
        """One exchange that is asked for; whoever keeps `b` busy leaves when it has to wait for it."""
        admission = Admission(principal(), "m", streamed=False, body=BODY)
        target = Target("m", Model(self.routes))
        busy = None if self.is_hedged else await self.balancer.place(Ask("other", 1.0, 0, self.routes[1:], _nothing))

        def enter(phase: Phase) -> None:
            if phase == "queue" and busy is not None:
                asyncio.get_running_loop().call_soon(busy.leave)

        self.accounts.append(account(sent=False))
        try:
            return await self.attempts.answer(arrived(), admission, target, self.accounts[-1], enter)
        finally:
            if busy is not None:
                busy.leave()

    @property
    def results(self) -> set[tuple[str, str]]:
        """Of all tries: where, and what came of it."""
        return {(one.upstream, one.result) for each in self.accounts for one in each.tries}

    async def answered(self) -> None:
        """One exchange, to its end."""
        _, answer = await self.answer()
        answer.close()

    async def nothing_held(self) -> None:
        assert (len(self.balancer._queue), self.balancer._waiting) == (0, {})
        await until(lambda: len(self.tasks) == 0, "no task is left")
        assert [up.health.in_flight for up in self.upstreams] == [0, 0]
        assert [up.pool.open - up.pool.idle for up in self.upstreams] == [0, 0]


@contextlib.asynccontextmanager
async def stage(first: AnsweringUpstream, second: AnsweringUpstream, *, hedged: bool = False) -> AsyncIterator[Stage]:
    async with first, second:
        at = Stage(first, second, hedged=hedged)
        try:
            yield at
        finally:
            await at.tasks.close(1.0)
            for up in at.upstreams:
                up.pool.close()


async def cancelled_at(at: Stage, which: int) -> bool:
    """One exchange, cancelled as it suspends for the `which`-th time. Returns whether it came so far."""
    cancellation = CancelledAt(at.answered(), which)

    async def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await cancellation

    await asyncio.wait_for(asyncio.get_running_loop().create_task(run()), LONG_S)
    return cancellation.suspensions >= which


@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_cancelled_at_every_await_of_failing_waiting_and_answering() -> None:
    """The first route fails, the second is busy for a while: a try, a pause, a wait in the queue and another try."""
    async with stage(AnsweringUpstream(script(BROKEN)), AnsweringUpstream(chat)) as at:
        which, reached = 0, True
        while reached:
            which += 1
            reached = await cancelled_at(at, which)
            await at.nothing_held()
        assert which > 4
        assert at.results == {("a", "5xx"), ("a", "abandoned"), ("b", "abandoned"), ("b", "2xx")}


@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_cancelled_at_every_await_of_a_hedged_try() -> None:
    """The first route is silent, the second answers."""
    async with stage(HoldingUpstream(), AnsweringUpstream(chat), hedged=True) as at:
        which, reached = 0, True
        while reached:
            which += 1
            reached = await cancelled_at(at, which)
            await at.nothing_held()
        assert which > 2
        assert at.results == {("a", "abandoned"), ("b", "abandoned"), ("b", "2xx")}


async def test_a_fault_in_writing_the_request_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no request")

    monkeypatch.setattr(attempts_module, "write", broken)
    async with stage(AnsweringUpstream(chat), AnsweringUpstream(chat)) as at:
        with pytest.raises(ValueError, match="no request"):
            await at.answer()
        await at.nothing_held()


async def test_an_answer_holds_its_place_until_it_is_closed() -> None:
    async with stage(AnsweringUpstream(script(BROKEN)), AnsweringUpstream(chat)) as at:
        sending, answer = await at.answer()
        assert (sending.upstream.name, answer.stream.head.status) == ("b", 200)
        assert [up.health.in_flight for up in at.upstreams] == [0, 1]
        answer.close()
        answer.close()
        await at.nothing_held()
        assert [(one.upstream, one.result) for one in at.accounts[0].tries] == [("a", "5xx"), ("b", "2xx")]
        assert at.accounts[0].attempts == 2
