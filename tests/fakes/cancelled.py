"""Work that is cancelled at an await of the test's choice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


class CancelledAt:
    """Awaits `work`, and cancels the task that does so just as it suspends for the `which`-th time."""

    def __init__(self, work: Coroutine[Any, Any, Any], which: int) -> None:
        self.suspensions = 0
        self._work = work
        self._which = which

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._work.send(None)  # noqa: E731 - it changes as the work goes on
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._which:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001 - the cancellation, on its way into the work
                thrown = error
                step = lambda: self._work.throw(thrown)  # noqa: B023, E731 - used at once
            else:
                step = lambda: self._work.send(None)  # noqa: E731
