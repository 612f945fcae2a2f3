"""The connections to one upstream: those that wait for a next exchange, and a count of all that are open."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final, cast

from proxy.upstream.connect import Origin, ProxyAddress, connect
from proxy.upstream.connection import READ_BUFFER_BYTES
from proxy.upstream.silence import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.upstream.connection import UpstreamConnection

__all__ = ["Origin", "ProxyAddress", "UpstreamPool"]

MAX_IDLE_S: Final = 60.0  # however long an upstream says that it keeps connections
# A name may point elsewhere by then: a connection that is always busy would never find out.
MAX_AGE_S: Final = 600.0
IDLE_MARGIN_S: Final = 1.0  # we let go that much earlier than the upstream, so that a request does not meet its close


class ReadBuffer:
    """Where reads go: `view`, and `get`, which returns it whatever it is given."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BUFFER_BYTES))
        # a function in C that takes one value: the default, which is never used
        self.get = cast("Callable[[int], memoryview]", functools.partial({"view": self.view}.get, "view"))


class UpstreamPool:
    """Keep-alive connections to one upstream, for the loop it was made in.

    `idle_s` is how long a connection may wait for its next exchange, in seconds, unless the upstream says otherwise
    with `Keep-Alive: timeout`. The default is below the 5 s of uvicorn, and thus of vLLM.
    """

    def __init__(self, origin: Origin, *, connect_timeout_s: float, idle_s: float = 4.0) -> None:
        self.origin = origin
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self.loop = asyncio.get_running_loop()
        self.silence = Silence(self.loop)
        self._read_buffer = ReadBuffer()
        self._open: set[UpstreamConnection] = set()
        self._idle: dict[UpstreamConnection, float] = {}  # in order of release: until when, in the loop's time
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<UpstreamPool {self.origin.authority}, {self.idle} idle, {self.open} open>"

    @property
    def idle(self) -> int:
        """Connections that wait for an exchange."""
        return len(self._idle)

    @property
    def open(self) -> int:
        """All connections, idle ones included."""
        return len(self._open)

    def take(self) -> UpstreamConnection | None:
        """The connection that was used last and is still good; None if there is none.

        Last in, first out: so the others grow old and are closed when load falls.
        """
        while self._idle:
            connection, good_until = self._idle.popitem()
            if good_until > self.loop.time() and connection.quiet():
                return connection
            connection.abort()
        return None

    async def acquire(self, *, fresh: bool = False) -> UpstreamConnection:
        """One of those that wait, or a new one; with `fresh` always a new one. Raises what `connect` raises."""
        if not fresh and (kept := self.take()) is not None:
            return kept
        connection = await connect(
            self.origin,
            read_buffer=self._read_buffer,
            on_closed=self._forget,
            timeout_s=self._connect_timeout_s,
        )
        self._open.add(connection)
        return connection

    def release(self, connection: UpstreamConnection, keep_alive_s: float | None = None) -> None:
        """Take back a connection whose exchange is over. `keep_alive_s` is the upstream's own idle time, if it told."""
        idle_s = self._idle_s if keep_alive_s is None else min(keep_alive_s - IDLE_MARGIN_S, MAX_IDLE_S)
        now_s = self.loop.time()
        if self._closed or connection.closed or now_s - connection.opened_s > MAX_AGE_S or idle_s <= 0:
            connection.abort()
            return
        connection.finish()
        self._idle[connection] = now_s + idle_s
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(idle_s, self._sweep)

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._idle):
            connection.abort()

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.loop.time()
        for connection in [connection for connection, good_until in self._idle.items() if good_until <= now]:
            connection.abort()  # which makes us forget it
        if self._idle:
            self._sweeper = self.loop.call_at(min(self._idle.values()), self._sweep)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
