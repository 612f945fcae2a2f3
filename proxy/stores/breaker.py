"""A circuit for a store: one that is out of reach is asked now and then, not by every request."""

from __future__ import annotations

from typing import Final

FAILURES: Final = 3
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 10.0


class Circuit:
    """Opens after `FAILURES` in a row. Then one call each pause may pass, and the pauses grow until one succeeds.

    Times are in seconds of any clock that does not go back.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._retry_at_s = 0.0

    @property
    def is_open(self) -> bool:
        """Calls are being refused."""
        return self._failures >= FAILURES

    def admits(self, now_s: float) -> bool:
        """Whether a call may be made now. One that may while the circuit is open is the probe of this pause."""
        if not self.is_open:
            return True
        if now_s < self._retry_at_s:
            return False
        # whether or not the probe is ever heard of again
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._retry_at_s = now_s + self._pause_s
        return True

    def retry_in_s(self, now_s: float) -> float:
        """How long calls will be refused; 0 if they are not."""
        return max(0.0, self._retry_at_s - now_s) if self.is_open else 0.0

    def succeeded(self) -> None:
        """A call was answered: whoever else asks may ask."""
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, now_s: float) -> None:
        """A call was not answered. Calls that began before the circuit opened change nothing more."""
        self._failures += 1
        if self._failures == FAILURES:
            self._retry_at_s = now_s + self._pause_s
