"""The API keys of an upstream, used in turn: one that it refused or limited rests for a while.

A key's rest only matters while another is left. When all rest, the one that may come back first is used all the same,
so that the client sees the upstream's own 401 or 429 and not an error of ours.
"""

from __future__ import annotations

from typing import Final

REFUSED_FIRST_S: Final = 30.0
REFUSED_LONGEST_S: Final = 600.0
LIMITED_FIRST_S: Final = 1.0
LIMITED_LONGEST_S: Final = 60.0
ASKED_LONGEST_S: Final = 600.0
"""Of what a `retry-after` asks for: a key whose month is spent is tried every ten minutes, in case it was topped up."""


class _Credential:
    __slots__ = ("growth_s", "until_s")

    def __init__(self) -> None:
        self.until_s = 0.0
        self.growth_s = 0.0  # the last cool-down of our own choice; 0 after a success


class Credentials:
    """`count` API keys, known by their place; where there are none, place 0 stands for nothing.

    Times are in seconds of a clock that starts at 0 or later and does not go back.
    """

    def __init__(self, count: int) -> None:
        self._credentials = [_Credential() for _ in range(max(count, 1))]
        self._next = 0

    def next(self, now_s: float) -> int:
        """The key to use now: those that do not cool down in turn, else the one that is ready first."""
        count = len(self._credentials)
        if count == 1:
            return 0
        places = [(self._next + step) % count for step in range(count)]
        place = min(places, key=lambda place: max(self._credentials[place].until_s, now_s))
        self._next = (place + 1) % count
        return place

    def is_ready(self, now_s: float) -> bool:
        """Some key does not cool down."""
        return any(credential.until_s <= now_s for credential in self._credentials)

    def cooling(self, now_s: float) -> int:
        """How many cool down."""
        return sum(credential.until_s > now_s for credential in self._credentials)

    def others(self, place: int, now_s: float) -> bool:
        """Another key than that does not cool down."""
        return any(credential.until_s <= now_s for other, credential in enumerate(self._credentials) if other != place)

    def cool(self, place: int, until_s: float) -> None:
        """Let a key rest until then, or for as long as it does already."""
        credential = self._credentials[place]
        credential.until_s = max(credential.until_s, until_s)

    def refused(self, place: int, now_s: float) -> None:
        """The upstream answered 401 or 403: `REFUSED_FIRST_S`, doubled each time up to `REFUSED_LONGEST_S`."""
        self._grow(place, now_s, REFUSED_FIRST_S, REFUSED_LONGEST_S)

    def limited(self, place: int, now_s: float, retry_after_s: float | None) -> None:
        """The upstream answered 429: for as long as it asks, up to `ASKED_LONGEST_S`.

        Where it does not say, `LIMITED_FIRST_S`, doubled each time up to `LIMITED_LONGEST_S`.
        """
        if retry_after_s is None:
            self._grow(place, now_s, LIMITED_FIRST_S, LIMITED_LONGEST_S)
        else:
            self.cool(place, now_s + min(retry_after_s, ASKED_LONGEST_S))

    def succeeded(self, place: int) -> None:
        """Its next cool-down is a first one. One that lasts still does: the answer may be to what was asked before."""
        self._credentials[place].growth_s = 0.0

    def _grow(self, place: int, now_s: float, first_s: float, longest_s: float) -> None:
        credential = self._credentials[place]
        if now_s < credential.until_s:
            return  # asked before it was known, or for want of another: one incident
        credential.growth_s = min(max(2 * credential.growth_s, first_s), longest_s)
        credential.until_s = now_s + credential.growth_s
