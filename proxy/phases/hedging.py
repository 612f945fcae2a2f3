"""A second try on another route while the first has not answered: whoever answers well first is taken.

After "The Tail at Scale" (Dean and Barroso 2013). It is for those who rather pay twice than wait, so it is off unless
configured; what the loser had been asked is charged.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from proxy.phases.attempts import Outcome
    from proxy.tasks import BackgroundTasks


class Hedge:
    """Runs tries at once; `after_s` is how long the first has for itself."""

    def __init__(self, after_s: float, tasks: BackgroundTasks) -> None:
        self._after_s = after_s
        self._tasks = tasks

    async def first_good(
        self, first: Coroutine[Any, Any, Outcome], another: Callable[[], Coroutine[Any, Any, Outcome] | None]
    ) -> Outcome:
        """The first outcome that is no failure, else the last; `another` gives the second try, if there can be one.

        The loser is cancelled, and its answer closed if it came in the same moment. Raises what a try raises.
        """
        running = [self._tasks.start(first, "attempt")]
        chosen: asyncio.Task[Outcome] | None = None
        try:
            await asyncio.wait(running, timeout=self._after_s)
            if not running[0].done() and (second := another()) is not None:
                running.append(self._tasks.start(second, "hedged attempt"))
            chosen = await _first_good(running)
            return chosen.result()
        finally:
            for task in running:
                if task is not chosen:
                    task.add_done_callback(_discard)
                    task.cancel()


async def _first_good(running: list[asyncio.Task[Outcome]]) -> asyncio.Task[Outcome]:
    pending = set(running)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        good = [task for task in done if task.exception() is None and _is_good(task.result())]
        if good or not pending:
            return (good or list(done))[0]
        for task in done:
            _discard(task)  # it holds its place no longer than it must: the other one decides


def _is_good(outcome: Outcome) -> bool:
    return outcome.answer is not None and outcome.answer.kind != "error"


def _discard(task: asyncio.Task[Outcome]) -> None:
    if not task.cancelled() and task.exception() is None and (answer := task.result().answer) is not None:
        answer.close()
