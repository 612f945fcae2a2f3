"""Which of several upstreams: the power of two choices (Mitzenmacher 2001), by weight.

Two are drawn and the less loaded is taken. That is nearly as even as asking all, and unlike the least loaded of all it
does not send everybody to the same one between two looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Candidate(Protocol):
    """What can be chosen: its share of the load, and how much it has in flight."""

    @property
    def weight(self) -> float:
        """Not negative."""

    @property
    def in_flight(self) -> int:
        """Requests that it serves."""


C = TypeVar("C", bound=Candidate)


def choose(candidates: Sequence[C], draw: Callable[[], float]) -> C:
    """One of `candidates`; `draw` gives numbers in [0, 1).

    One with weight 0 only where all have it, and then all alike. The first that is drawn is kept unless the second,
    with one more in flight, would still carry no more for its weight than the first does. So load is shared by weight,
    not all sent to the heaviest, as long as it differs by less than a request, and an idle one beats a busy one of the
    same weight. Raises `ValueError` if there is none.
    """
    if not candidates:
        raise ValueError("nobody to choose from")
    weighted = [(one, one.weight) for one in candidates if one.weight > 0] or [(one, 1.0) for one in candidates]
    first, first_weight = weighted.pop(_drawn(weighted, draw))
    if not weighted:
        return first
    second, second_weight = weighted[_drawn(weighted, draw)]
    return second if (second.in_flight + 1) * first_weight <= first.in_flight * second_weight else first


def _drawn(weighted: list[tuple[C, float]], draw: Callable[[], float]) -> int:
    if len(weighted) <= 1:
        return len(weighted) - 1
    point = draw() * sum(weight for _, weight in weighted)
    for index, (_, weight) in enumerate(weighted):
        point -= weight
        if point < 0:
            return index
    return len(weighted) - 1  # rounding
