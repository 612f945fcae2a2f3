"""Where limits stand, as a test says."""

from __future__ import annotations

from proxy.core.quota import Limit, Limits, Standing
from proxy.core.quota_stands import NOTHING, Laid, Stands, laid_out
from proxy.core.quota_windows import Counter, advanced


class Told(Stands, frozen=True):
    """Standings as they are given, possible or not."""

    given: tuple[Standing, ...] = ()

    def standings(self) -> tuple[Standing, ...]:
        return self.given


def told(*standings: Standing) -> Stands:
    """Limits that stand so."""
    return Told(Laid(Limits(tuple(standing.limit for standing in standings))), given=standings)


def stood(now_ms: int, *counts: tuple[Limit, int]) -> Stands:
    """Limits of which so much was used in the current bucket, and nothing before."""
    counters = []
    for limit, current in counts:
        now = advanced(None, limit.window, now_ms)
        counters.append(Counter(now.window, now.bucket, current))
    return Stands(laid_out(Limits(tuple(limit for limit, _ in counts)), counters), NOTHING, now_ms)
