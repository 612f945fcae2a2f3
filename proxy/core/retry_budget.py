"""How many retries are too many: a share of recent requests, so that a failing upstream is not given more work yet.

After Finagle's `RetryBudget`: each request deposits a part of a retry, which is good for some seconds. What a retry
spends comes back as the window moves on.
"""

from __future__ import annotations

from typing import Final

from proxy.core.recent import Recent

WINDOW_S: Final = 10
RESERVE: Final = 3
"""Retries in any `WINDOW_S` that need no deposit. A service with a request a minute could never retry without, and
three are one request tried over to the end of the default attempts, with one to spare."""


class RetryBudget:
    """Retries of the last `WINDOW_S` seconds are at most `share` of the requests in them, and `RESERVE` more.

    True at the moment of each retry. A `share` of 0 allows none at all. Times are of a clock that does not go back.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._reserve = RESERVE if share > 0 else 0
        # the steps at both ends are not whole: requests are counted over less than the window, retries over more
        self._requests = Recent(WINDOW_S)
        self._retries = Recent(WINDOW_S + 1)

    def request(self, now_s: float) -> None:
        """A request came; its retries are not counted here."""
        self._requests.add(now_s)

    def may_spend(self, now_s: float) -> bool:
        """Whether there is a retry left."""
        return self._retries.total(now_s) + 1 <= self._share * self._requests.total(now_s) + self._reserve

    def spend(self, now_s: float) -> None:
        """A retry is made."""
        self._retries.add(now_s)
