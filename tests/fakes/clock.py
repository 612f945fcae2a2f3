"""A loop's clock and timers, moved by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ManualTimer:
    """What `call_at` gives."""

    def __init__(self, loop: ManualLoop, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self._loop = loop

    def cancel(self) -> None:
        if self in self._loop.timers:
            self._loop.timers.remove(self)


class ManualLoop:
    """As much of an event loop as timers need. `now` is in seconds, as `time()`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[ManualTimer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> ManualTimer:
        timer = ManualTimer(self, when, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass, and the timers that fall due in it fire in order, each at its own moment."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.when <= end]:
            timer = min(due, key=lambda candidate: candidate.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = end
