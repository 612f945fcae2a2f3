"""Tracked background tasks: the only place that creates them.

asyncio keeps weak references to tasks, so one nobody holds may be collected while it runs; and a stop must be able to
wait for what is still settling. Hence one `TaskGroup`-like holder that the composition root owns.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = logging.getLogger("sluice.tasks")


class BackgroundTasks:
    """Tasks that outlive the call that started them, held until they are done."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in a task of its own; a failure nobody awaits is logged with its name."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def keep(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run `work` likewise, where nobody needs the task."""
        _ = self.start(work, name)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # the type only: messages of foreign exceptions may quote request bytes
            _log.error("background task %s failed: %s", task.get_name(), type(error).__name__)

    async def close(self, patience_s: float) -> None:
        """Wait up to `patience_s` seconds for what runs, then cancel the rest and wait for that."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
