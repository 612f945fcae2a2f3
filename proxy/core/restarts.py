"""When a worker that died is started again: soon, and ever later while that does not help."""

from __future__ import annotations

from collections import deque
from typing import Final

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_HEALTHY_S: Final = 30.0  # whoever lived as long did not die of how it was started
_LOOP_DEATHS: Final = 5
_LOOP_WINDOW_S: Final = 60.0


class Restarts:
    """The deaths of one worker, all processes that had its place counted."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S
        self._deaths_s: deque[float] = deque(maxlen=_LOOP_DEATHS)

    def died(self, now_s: float, lived_s: float) -> float:
        """Note a death after a life of `lived_s` seconds. How long to wait before the next start, in seconds."""
        self._deaths_s.append(now_s)
        if lived_s >= _HEALTHY_S:
            self._pause_s = _FIRST_PAUSE_S
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def is_loop(self, now_s: float) -> bool:
        """Whether it died five times within the last minute."""
        return len(self._deaths_s) == _LOOP_DEATHS and now_s - self._deaths_s[0] <= _LOOP_WINDOW_S
