"""The pauses within one stream, sorted into buckets as they happen: a histogram each of them would cost more."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import repeat
from operator import sub
from typing import Final

# tokens come 10 to 100 ms apart as a rule; a second is a stutter, and `idle` ends a silent stream at 120 s
BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Gaps:
    """Counts the pauses between `saw`s by `BOUNDS_S`, as Prometheus has it: a pause belongs to its upper bound."""

    __slots__ = ("counts", "last_s", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0
        self.last_s = -1.0  # when something came last, below 0 before that

    def saw(self, now_s: float) -> None:
        """Something came; `now_s` is of a clock that starts at 0 or later and does not go back."""
        last_s = self.last_s
        self.last_s = now_s
        if last_s >= 0:
            pause_s = now_s - last_s
            self.total_s += pause_s
            self.counts[bisect_left(BOUNDS_S, pause_s)] += 1

    def saw_all(self, times_s: list[float]) -> None:
        """The same for several that came behind something else, in their order: each costs a fifth of a `saw`."""
        pauses_s = list(map(sub, times_s, [self.last_s, *times_s[:-1]]))
        self.total_s += sum(pauses_s)
        for bucket, count in Counter(map(bisect_left, repeat(BOUNDS_S), pauses_s)).items():
            self.counts[bucket] += count
        self.last_s = times_s[-1]
