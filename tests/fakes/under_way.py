"""What an exchange has left behind in the event loop."""

from __future__ import annotations

import asyncio

from proxy.stores.ledger import DatabaseLedger
from proxy.upstream.silence import Silence


class Watch:
    """What is under way in the loop besides the test itself: tasks, and on asyncio's own loop timers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.all_tasks()
        self._timers = self._armed()

    def _armed(self) -> set[asyncio.TimerHandle]:
        scheduled: list[asyncio.TimerHandle] = getattr(self._loop, "_scheduled", [])
        return {timer for timer in scheduled if not timer.cancelled() and not _is_shared(timer)}

    @property
    def left(self) -> list[object]:
        return [*(asyncio.all_tasks() - self._tasks), *(self._armed() - self._timers)]


def _is_shared(timer: asyncio.TimerHandle) -> bool:
    """One for all exchanges, which ends by itself; that of an upstream's first bytes once it expects none."""
    callback = getattr(timer, "_callback", None)
    owner = getattr(callback, "__self__", None)
    return isinstance(owner, DatabaseLedger) or (isinstance(owner, Silence) and not len(owner))
