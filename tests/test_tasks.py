"""Background tasks are held while they run, their failures are told, and a stop waits for them."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING

import pytest

from proxy.tasks import BackgroundTasks
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_task_nobody_else_holds_survives_the_collector() -> None:
    tasks = BackgroundTasks()
    done = asyncio.Event()
    wake: list[Callable[[], None]] = []

    async def work() -> None:
        woken = asyncio.get_running_loop().create_future()
        wake.append(lambda: woken.set_result(None))
        await woken
        done.set()

    assert not tasks.start(work(), "work").done()  # and the reference is gone
    await turns()
    gc.collect()
    wake[0]()
    await done.wait()
    await turns()
    assert len(tasks) == 0


async def test_a_failure_nobody_awaits_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks()

    async def work() -> None:
        raise ValueError("sk-secret")

    with caplog.at_level(logging.ERROR, "sluice.tasks"):
        task = tasks.start(work(), "settle")
        await asyncio.wait({task})
        await turns()
    assert len(tasks) == 0
    assert "settle" in caplog.text
    assert "ValueError" in caplog.text
    assert "sk-secret" not in caplog.text


async def test_a_cancelled_task_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks()
    task = tasks.start(asyncio.Event().wait(), "waiting")
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert len(tasks) == 0
    assert caplog.text == ""


async def test_close_waits_for_what_ends_in_time() -> None:
    tasks = BackgroundTasks()
    go = asyncio.Event()
    task = tasks.start(go.wait(), "settling")
    closing = asyncio.get_running_loop().create_task(tasks.close(patience_s=5))
    await turns()
    assert not closing.done()
    go.set()
    await closing
    assert task.result() is True


async def test_close_cancels_what_does_not_and_waits_for_its_clean_up() -> None:
    tasks = BackgroundTasks()
    cleaned = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turns()
            cleaned.append(True)

    task = tasks.start(stubborn(), "stubborn")
    await turns()
    await tasks.close(patience_s=0)
    assert task.cancelled()
    assert cleaned == [True]
    assert len(tasks) == 0


async def test_close_with_nothing_to_wait_for_returns_at_once() -> None:
    await asyncio.wait_for(BackgroundTasks().close(patience_s=2 * LONG_S), LONG_S)
