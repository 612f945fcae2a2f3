"""What a supervisor tells its workers on an operator's behalf, also those that were starting meanwhile."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import structlog
from prometheus_client import CollectorRegistry

from proxy.admin.inside import Question, SetDrained
from proxy.config.settings import Config, OpsConfig, ServerConfig
from proxy.control import Begin, StartError
from proxy.fleet import Fleet
from proxy.supervisor import Supervisor
from proxy.tasks import BackgroundTasks
from proxy.telemetry.metrics import Metrics
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.child import Child
    from proxy.telemetry.merging import Family


class Worker:
    """A worker as its supervisor sees it; it notes which upstreams it is told are drained."""

    def __init__(self, number: int, drained: Sequence[str] = (), *, answers: bool = True) -> None:
        self.number = self.serial = number
        self.drained = frozenset(drained)
        self.is_ready = True
        self.last_counts: Sequence[Family] | None = None
        self.told: list[tuple[str, ...]] = []
        self._answers = answers

    async def inside(self, question: bytes) -> bytes | None:
        asked = msgspec.msgpack.decode(question, type=Question)
        assert isinstance(asked, SetDrained)
        await asyncio.sleep(0)
        self.told.append(asked.names)
        return msgspec.msgpack.encode(True) if self._answers else None

    async def counts(self) -> None:
        return None

    async def is_over(self, _patience_s: float) -> bool:
        return True


def joined(fleet: Fleet, worker: Worker) -> Worker:
    fleet.joined(cast("Child", worker))
    return worker


async def test_a_worker_that_started_meanwhile_is_told_when_it_accepts() -> None:
    tasks = BackgroundTasks()
    fleet = Fleet(2, Metrics(CollectorRegistry()), tasks)
    ready, starting = joined(fleet, Worker(1)), joined(fleet, Worker(2))
    starting.is_ready = False
    answers = await fleet.drain("up", is_drained=True)
    assert (list(answers.by_worker), answers.silent) == ([1], [])
    assert (ready.told, starting.told) == ([("up",)], [])
    starting.is_ready = True
    fleet.accepts(cast("Child", starting))
    await until(lambda: starting.told, "it is told")
    await fleet.drain("up", is_drained=False)
    assert (ready.told, starting.told) == ([("up",), ()], [("up",), ()])
    begun_with_it = joined(fleet, Worker(2))
    fleet.accepts(cast("Child", begun_with_it))
    await tasks.close(1.0)
    assert begun_with_it.told == []


async def test_a_worker_begins_with_what_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before it accepts: no exchange may slip through to a drained upstream."""
    begun: list[Begin] = []

    async def start(begin: Begin, *_: object) -> None:
        begun.append(begin)
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr("proxy.supervisor.Child.start", start)
    config = Config(server=ServerConfig(port=0, workers=1), ops=OpsConfig(port=0))
    supervisor = Supervisor(config, Metrics(CollectorRegistry()), structlog.get_logger())
    try:
        await supervisor.fleet.drain("up", is_drained=True)
        with pytest.raises(StartError, match="no more processes"):
            await supervisor.start()
    finally:
        await supervisor.stop()
    assert [begin.drained for begin in begun] == [("up",)]


async def test_who_does_not_answer_is_named_and_who_has_ended_is_not() -> None:
    fleet = Fleet(3, Metrics(CollectorRegistry()), BackgroundTasks())
    joined(fleet, Worker(1))
    joined(fleet, Worker(2, answers=False))
    ended = joined(fleet, Worker(3, answers=False))
    answers = await fleet.drain("up", is_drained=True)
    assert (list(answers.by_worker), answers.silent) == ([1], [2, 3])
    ended.is_ready = False
    answers = await fleet.drain("up", is_drained=True)
    assert (list(answers.by_worker), answers.silent) == ([1], [2])
