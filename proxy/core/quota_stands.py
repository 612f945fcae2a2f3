"""Where the limits of a key stood at a moment: kept as it was found, and worked out by who asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.quota import Kind, Limits
from proxy.core.quota_windows import Counter, standing, turns_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.quota import Standing

# what was charged of each kind, in the order of a demand
Charged = tuple[int, int, int]
NOTHING: Final[Charged] = (0, 0, 0)


# A window as headers tell of it: its amount, how much of that its current bucket leaves, what the bucket before counts,
# when the current one is over, and the length in milliseconds of one that slides, 0 of another.
Row = tuple[int, int, int, int, int]


class Laid(msgspec.Struct, frozen=True, gc=False):
    """Limits, and a counter for each of their windows: as they were when they were laid out, for many exchanges."""

    limits: Limits = Limits()
    counters: tuple[Counter, ...] = ()
    requests: tuple[Row, ...] = ()
    tokens: tuple[Row, ...] = ()

    def counted(self, charged: Charged) -> tuple[Counter, ...]:
        """The counters with what was charged since in them."""
        return tuple(
            Counter(counter.window, counter.bucket, counter.current + charged[at], counter.previous)
            for counter, at in zip(self.counters, self.limits.places, strict=True)
        )


class Stands(msgspec.Struct, frozen=True, gc=False):
    """Where the limits stood at `now_ms`, with what was `charged` until then. Its counters are `advanced` to then."""

    laid: Laid = Laid()
    charged: Charged = NOTHING
    now_ms: int = 0

    def standings(self) -> tuple[Standing, ...]:
        """One for each window, in the order of the limits."""
        pairs = zip(self.laid.limits.windows, self.laid.counted(self.charged), strict=True)
        return tuple(standing(limit, counter, self.now_ms) for limit, counter in pairs)


def laid_out(limits: Limits, counters: Iterable[Counter]) -> Laid:
    """The counters of the windows, in their order."""
    counters = tuple(counters)
    return Laid(limits, counters, _rows(limits, counters, Kind.REQUESTS), _rows(limits, counters, Kind.TOKENS))


def _rows(limits: Limits, counters: tuple[Counter, ...], kind: Kind) -> tuple[Row, ...]:
    return tuple(
        (
            limit.amount,
            limit.amount - counter.current,
            counter.previous,
            turns_ms(counter),
            limit.window * 1000 if isinstance(limit.window, int) else 0,
        )
        for limit, counter in zip(limits.windows, counters, strict=True)
        if limit.kind is kind
    )
