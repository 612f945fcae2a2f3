"""The circuit of an upstream or a store: one that keeps failing is left alone, and asked now and then whether it works.

Closed, everybody may ask. It opens after failures in a row (Envoy's consecutive errors, as when a server is down) or
when most of many recent results were failures (Envoy's failure percentage, as when a part of its replicas is). Open,
nobody may, for a cool-down. Then it is half open: one may ask, and its result closes or opens it again, for longer.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from proxy.core.recent import Recent

WINDOW_S: Final = 10
JITTER_SHARE: Final = 0.25
PROBE_WAIT_S: Final = 1.0
"""What those are told to wait who come while one asks: its result is due at any time."""


class State(enum.IntEnum):
    """The values of the gauge `sluice_upstream_circuit`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


_VOID: Final = -1


class Ticket(msgspec.Struct, eq=False, gc=False):
    """Permission to ask. Whoever has it reports what came of it, or that it was abandoned.

    `opened` is how often the circuit had opened by then; `row` the failures in a row that its success ended, None
    before that.
    """

    opened: int
    row: int | None = None


class Circuit:
    """Opens after `failures` in a row, or when at least `failure_share` of at least `least_results` lately failed.

    It stays open for `cooldown_s`, and twice as long each time, `max_cooldown_s` at most, until it has stayed closed
    for as long as it was last open. Times are in seconds of any clock that does not go back. "Lately" is the last
    `WINDOW_S` seconds.
    """

    def __init__(
        self,
        *,
        failures: int,
        cooldown_s: float,
        max_cooldown_s: float,
        failure_share: float = 0.5,
        least_results: int = 20,
    ) -> None:
        self._most_in_row = failures
        self._first_cooldown_s = cooldown_s
        self._max_cooldown_s = max_cooldown_s
        self._failure_share = failure_share
        self._least_results = least_results
        self._in_row = 0
        self._results = Recent(WINDOW_S)
        self._failures = Recent(WINDOW_S)
        self._opened = 0
        self.is_open = False  # it has opened, and nobody has succeeded since
        self._until_s = 0.0  # how long nobody may ask; of no meaning while it is closed
        self._probe: Ticket | None = None
        self._probed_s = 0.0
        self._cooldown_s = 0.0  # the last one; 0 once it is forgotten
        self._closed_at_s = 0.0

    def state(self, now_s: float) -> State:
        """Where it stands."""
        if not self.is_open:
            return State.CLOSED
        return State.OPEN if now_s < self._until_s else State.HALF_OPEN

    def admits(self, now_s: float) -> bool:
        """Whether `enter` would let someone pass; changes nothing."""
        if not self.is_open:
            return True
        # one that takes longer than a cool-down says nothing meanwhile: another may try
        is_tried = self._probe is not None and now_s < self._probed_s + self._first_cooldown_s
        return now_s >= self._until_s and not is_tried

    def enter(self, now_s: float) -> Ticket | None:
        """Permission to ask; None for none. While half open, one has it at a time, and for no longer than a cool-down.

        What an earlier one tells later still counts.
        """
        if not self.is_open:
            return Ticket(self._opened)
        if not self.admits(now_s):
            return None
        self._probe = Ticket(self._opened)
        self._probed_s = now_s
        return self._probe

    def retry_in_s(self, now_s: float) -> float:
        """How long nobody may ask; 0 if someone may. `PROBE_WAIT_S` at least while it is being tried."""
        if self.admits(now_s):
            return 0.0
        return PROBE_WAIT_S if self._probe is not None else self._until_s - now_s

    def succeeded(self, ticket: Ticket, now_s: float) -> None:
        """It works. Nothing of those who entered before it opened: what they tell is older than that."""
        if ticket.opened != self._opened:
            return
        if self.is_open:  # it was let in while half open
            self.close(now_s)
        ticket.row = self._in_row
        self._in_row = 0
        self._results.add(now_s)

    def close(self, now_s: float) -> None:
        """It is known to work, by whoever asked without permission."""
        self._probe = None
        self.is_open = False
        self._closed_at_s = now_s
        self._in_row = 0
        self._results.clear()
        self._failures.clear()

    def failed(self, ticket: Ticket | None, now_s: float, jitter: float = 0.0) -> None:
        """It failed; also after it had `succeeded`, where an answer broke off.

        `ticket` None is one who entered since it closed. `jitter`, in [0, 1), shortens the cool-down by up to a
        quarter, so that those who saw the same failure do not all ask again at once.
        """
        if ticket is not None and ticket.opened != self._opened:
            return
        if not self.is_open:
            row = None if ticket is None else ticket.row
            # what broke off after its head had come was no success, and ended no row
            self._in_row = (self._in_row if row is None else max(row, self._in_row)) + 1
            if row is None:
                self._results.add(now_s)
            self._failures.add(now_s)
            if self._in_row >= self._most_in_row or self._mostly_fails(now_s):
                self._open(now_s, jitter)
        elif ticket is not None:
            self._open(now_s, jitter)

    def abandoned(self, ticket: Ticket) -> None:
        """Nothing was learned: the client left. The next one may ask. After a result it changes nothing."""
        if self.is_open:
            if ticket.opened == self._opened:
                ticket.opened = _VOID
            if ticket is self._probe:
                self._probe = None

    def _mostly_fails(self, now_s: float) -> bool:
        results = self._results.total(now_s)
        return results >= self._least_results and self._failures.total(now_s) >= self._failure_share * results

    def _open(self, now_s: float, jitter: float) -> None:
        if not self.is_open and now_s - self._closed_at_s >= self._cooldown_s:
            self._cooldown_s = 0.0
        self._cooldown_s = min(max(2 * self._cooldown_s, self._first_cooldown_s), self._max_cooldown_s)
        self.is_open = True
        self._until_s = now_s + self._cooldown_s * (1 - JITTER_SHARE * jitter)
        self._probe = None
        self._opened += 1
