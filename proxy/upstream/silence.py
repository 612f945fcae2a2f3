"""Upstreams that are given a request and say nothing: one timer for all who wait, and not one for each.

A timer made and thrown away with every request costs several times as much as an entry in a dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.errors import UPSTREAM_TIMEOUT, ProxyError

if TYPE_CHECKING:
    import asyncio

    from proxy.upstream.connection import UpstreamConnection
    from proxy.upstream.framing import ResponseReader

_LEAST_PAUSE_S: Final = 0.01  # between two looks, so that many who wait do not make many looks at all of them


class Silence:
    """Fails exchanges whose upstream has said nothing for too long.

    It looks when the first of them is due, `_LEAST_PAUSE_S` late at most, and not again once nobody waits.
    """

    __slots__ = ("_due", "_look_s", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[UpstreamConnection, tuple[float, ResponseReader]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = 0.0  # when the timer is due

    def __len__(self) -> int:
        return len(self._due)

    def expect(self, connection: UpstreamConnection, reader: ResponseReader, limit_s: float) -> None:
        """Fail the connection with UPSTREAM_TIMEOUT unless `reader` has a head, or it is heard, in `limit_s` seconds.

        Whoever expects it already begins to wait anew.
        """
        due_s = self._loop.time() + limit_s
        self._due[connection] = (due_s, reader)
        if self._timer is None or due_s < self._look_s:
            self._look_at(due_s)

    def heard(self, connection: UpstreamConnection) -> None:
        """Expect nothing of the connection any more. Idempotent."""
        self._due.pop(connection, None)

    def _look_at(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_s = at_s
        self._timer = self._loop.call_at(at_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for connection, (due_s, reader) in list(self._due.items()):
            if due_s <= now_s:
                del self._due[connection]
                if reader.head is None:  # else it came just before, and whoever waits had not his turn yet
                    connection.fail(ProxyError(UPSTREAM_TIMEOUT, "The upstream did not answer in time."))
        if self._due:
            self._look_at(max(min(self._due.values(), key=_due)[0], now_s + _LEAST_PAUSE_S))


def _due(waiting: tuple[float, ResponseReader]) -> float:
    return waiting[0]
