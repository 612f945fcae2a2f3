"""How many of something there were lately, in constant time and space."""

from __future__ import annotations

from typing import Final

STEP_S: Final = 1.0


class Recent:
    """A count over the last `steps` seconds, of which the first and the last are not whole.

    What it counts came less than `steps` seconds ago, and all is counted that came at most `steps - 1` seconds ago.
    Times are of a clock that does not go back.
    """

    __slots__ = ("_before", "_counts", "_step", "_step_end_s", "_total")

    def __init__(self, steps: int) -> None:
        self._counts = [0] * steps  # of the steps that are over
        self._step = 0
        self._step_end_s = STEP_S
        self._total = 0
        self._before = 0  # of the total, what came before this step

    def add(self, now_s: float) -> None:
        """One more."""
        if now_s >= self._step_end_s:
            self._advance(now_s)
        self._total += 1

    def total(self, now_s: float) -> int:
        """How many there are."""
        if now_s >= self._step_end_s:
            self._advance(now_s)
        return self._total

    def clear(self) -> None:
        """Start again."""
        self._counts = [0] * len(self._counts)
        self._total = self._before = 0

    def _advance(self, now_s: float) -> None:
        """Leave the steps that are over; `now_s` is in a later one."""
        step = int(now_s // STEP_S)
        self._counts[self._step % len(self._counts)] = self._total - self._before
        for passed in range(max(self._step + 1, step - len(self._counts) + 1), step + 1):
            index = passed % len(self._counts)
            self._total -= self._counts[index]
            self._counts[index] = 0
        self._step = step
        self._step_end_s = (step + 1) * STEP_S
        self._before = self._total
