"""How late the event loop runs what is due: what everybody on it waits for somebody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LAG_INTERVAL_S: Final = 0.25


class EventLoopLag:
    """Observes how late timers fire, with a timer every 250 ms and no task."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        """End; no timer is left behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_LAG_INTERVAL_S, self._fire, loop, loop.time() + _LAG_INTERVAL_S)

    def _fire(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        # uvloop's clock counts whole milliseconds, and may fire a fraction early
        self._observe(max(0.0, loop.time() - due))
        self._arm(loop)
