"""Failed authentications, counted by client address: who fails too often is told to wait.

Only failures are counted and refused. A good key works from every address, so that nobody who shares one with an
attacker is locked out; what the throttle gives is that clients with a wrong key slow down, and that operators see them.

What is held is bounded: the address that has not failed for the longest goes first. Whoever wants it forgotten that an
address has failed must fail from `capacity` others before its failures count no more, which is two windows at most. Of
IPv6 the /48 has a limit too, four times that of a /64, so that one who holds a whole /48 adds no more than eight times
the limit's amount to these: at 60 a minute and 10,000 addresses it takes 21 networks of that size, or 10,000 hosts with
IPv4. And it gains them no more than the failures of one address over again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.addresses import networks_of
from proxy.core.quota_windows import advanced, charge, wait_ms

if TYPE_CHECKING:
    from proxy.core.quota import Limit
    from proxy.core.quota_windows import Counter

CAPACITY: Final = 10_000  # networks, some 2 MB
_SHARES: Final = (1, 4)  # of the address (IPv6: the /64), and of the /48 around it, in multiples of the limit


class Throttle:
    """Counts the failures of addresses against a sliding `limit`. In one process, for that process alone."""

    def __init__(self, limit: Limit, capacity: int = CAPACITY) -> None:
        self._limit = limit
        self._capacity = capacity
        self._counters: dict[bytes, Counter] = {}  # by network, in the order of their last failures

    def __len__(self) -> int:
        return len(self._counters)

    def failed(self, address: str, now_s: float) -> float | None:
        """Take note of a failure at `now_s` on a monotonic clock.

        None while the address is within the limit. Else the seconds until it is again; such a failure does not count,
        or the wait would not be true for a client that asks in between.
        """
        now_ms = int(now_s * 1000)
        standing = [self._standing(*row, now_ms) for row in zip(networks_of(address), _SHARES, strict=False)]
        longest_ms = max(own_ms for _, _, own_ms in standing)
        for network, counter, own_ms in standing:
            # what its /48 alone refuses keeps its place: failures that do not count must not crowd out others
            if own_ms or not longest_ms:
                self._counters.pop(network, None)
                self._counters[network] = counter
                if not longest_ms:
                    charge(counter, counter.bucket, 1)
        while len(self._counters) > self._capacity:
            del self._counters[next(iter(self._counters))]
        return longest_ms / 1000 if longest_ms else None

    def _standing(self, network: bytes, share: int, now_ms: int) -> tuple[bytes, Counter, int]:
        """A network with its counter as of now, and the milliseconds until it has room for a failure."""
        counter = advanced(self._counters.get(network), self._limit.window, now_ms)
        return network, counter, wait_ms(counter, self._limit.amount * share, 1, now_ms) or 0
