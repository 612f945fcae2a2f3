"""The one timer of a stream: upstream silent, client accepting nothing, the whole taking too long, a comment due.

A timer per read would cost more than the read (libraries.md section 2), so this one is armed lazily: the relay only
notes since when it waits, and the timer, when it fires, works out what is due and when to look again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from proxy.core import errors
from proxy.core.discreet import Discreet

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.headers import RawHeaders
    from proxy.phases.exchange import Downstream
    from proxy.upstream.stream import UpstreamStream

# looks at the client's progress this often within `write_stall`: a cut comes at most a quarter late
_STALL_LOOKS: Final = 4
_NEVER_S: Final = float("inf")


class _Progress:
    """Whether the client's side accepts anything. Its kernel's acknowledgements tell, not the time a write takes."""

    __slots__ = ("_acknowledged", "_downstream", "_since_s", "_write_stall_s", "stalled")

    def __init__(self, downstream: Downstream, write_stall_s: float | None, now: float) -> None:
        self.stalled = False
        self._downstream = downstream
        self._write_stall_s = write_stall_s
        self._acknowledged = -1
        self._since_s = now

    def look(self, now: float) -> float | None:
        """When to look again; None when the client has stalled, or may."""
        if self._write_stall_s is None:
            return None
        acknowledged = self._downstream.acknowledged_bytes()
        if acknowledged is None or acknowledged > self._acknowledged:
            self._since_s = now
        self._acknowledged = -1 if acknowledged is None else acknowledged
        self.stalled = now - self._since_s >= self._write_stall_s
        return None if self.stalled else now + self._write_stall_s / _STALL_LOOKS


class StallWatch:
    """Drops a client that accepts nothing of an answer of Sluice's own for `write_stall_s` seconds; None: never."""

    def __init__(self, downstream: Downstream, write_stall_s: float | None) -> None:
        self.fired: str | None = None  # write_stall, once it did
        self._loop = asyncio.get_running_loop()
        self._downstream = downstream
        self._progress = _Progress(downstream, write_stall_s, self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        due = self._progress.look(self._loop.time())
        self._timer = None if due is None else self._loop.call_at(due, self._look)
        if self._progress.stalled:
            self.fired = "write_stall"
            self._downstream.abort()


async def send_whole(downstream: Downstream, status: int, headers: RawHeaders, body: bytes, watch: StallWatch) -> None:
    """Send an answer of Sluice's own, whole, under `watch`. Raises `ConnectionError` when the client has left."""
    try:
        downstream.start(status, headers, len(body) if body else None)
        if body:
            await downstream.write(body)
        await downstream.finish()
    finally:
        watch.stop()


class Flow(Protocol):
    """A body that goes by without being read."""

    def catch_up(self) -> None:
        """Let all who follow the stream be told of what has come so far."""

    def silent_s(self) -> float:
        """For how long nothing had come when they were told."""


class Watchdog(Discreet):
    """Watches one stream from the first time that it is waited for, or `arm`, to the last byte downstream.

    All limits in seconds, None for none; `deadline_s` and every time on the loop's clock. `fired` is who ended the
    stream: idle, total or write_stall.
    """

    stream: UpstreamStream
    downstream: Downstream
    idle_s: float | None
    deadline_s: float | None
    write_stall_s: float | None
    loop: asyncio.AbstractEventLoop
    fired: str | None = None
    _waiting_since_s: float | None = None
    _flow: Flow | None = None
    _keepalive_s: float | None = None
    _keepalive: Callable[[], None] | None = None
    _kept_alive_s: float = 0.0
    _progress: _Progress | None = None
    _timer: asyncio.TimerHandle | None = None
    _due_s: float = _NEVER_S  # when the timer fires

    def arm(self) -> None:
        """Watch from now on. Called before anything that may wait; an answer that needs no waiting needs no timer."""
        if self._progress is not None:
            return
        now, write_stall_s, idle_s = self.loop.time(), self.write_stall_s, self.idle_s
        self._progress = _Progress(self.downstream, write_stall_s, now)
        due_s = _NEVER_S if self.deadline_s is None else self.deadline_s
        if write_stall_s is not None:
            due_s = min(due_s, now + write_stall_s / _STALL_LOOKS)
        if idle_s is not None:
            due_s = min(due_s, now + idle_s)
        self._look_by(due_s)

    async def read(self) -> bytes:
        """The next body bytes, b"" at the clean end; the time spent here is the upstream's silence."""
        data = self.stream.read_nowait()
        if data:
            return data
        self.arm()
        self._waiting_since_s = self.loop.time()
        try:
            return await self.stream.read()
        finally:
            self._waiting_since_s = None

    def flows(self, flow: Flow | None) -> None:
        """From now on the body goes past `read`, in `flow`; None: no longer."""
        self._flow = flow
        self._waiting_since_s = None if flow is None else self.loop.time()

    def catch_up(self) -> None:
        """Let all be told of what has flowed past `read` so far."""
        if self._flow is not None:
            self._flow.catch_up()

    def keep_alive(self, interval_s: float, send: Callable[[], None]) -> None:
        """Call `send` whenever the upstream has been silent for `interval_s`."""
        self._keepalive_s, self._keepalive = interval_s, send
        self._look_by(self.loop.time() + interval_s)

    def hurry(self, idle_s: float) -> None:
        """The answer is whole: wait at most `idle_s` more for the upstream to end its body."""
        if (self.idle_s is None or self.idle_s > idle_s) and not self.stream.complete:
            self.idle_s = idle_s
            self._look_by(self.loop.time() + idle_s)

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._due_s = _NEVER_S

    def _look_by(self, due_s: float) -> None:
        """Look at that time, if not before."""
        if due_s < self._due_s:
            if self._timer is not None:
                self._timer.cancel()
            self._due_s = due_s
            self._timer = self.loop.call_at(due_s, self._look)

    def _look(self) -> None:
        """Act on what is due, and arm the timer for what is due next."""
        now = self.loop.time()
        self._timer, self._due_s = None, _NEVER_S
        if self._flow is not None and self._waiting_since_s is not None:
            self._flow.catch_up()
            self._waiting_since_s = max(self._waiting_since_s, now - self._flow.silent_s())
        for check in (self._check_stall, self._check_total, self._check_idle, self._check_keepalive):
            due_s = check(now)
            if due_s is not None:
                self._look_by(due_s)

    def _check_total(self, now: float) -> float | None:
        if self.deadline_s is None or self.fired is not None:
            return None
        if now < self.deadline_s:
            return self.deadline_s
        self._fail("total", "The answer took longer than the upstream's `total` timeout.")
        return None

    def _check_idle(self, now: float) -> float | None:
        if self.idle_s is None or self.fired is not None:
            return None
        since_s = self._waiting_since_s
        if since_s is None:
            return now + self.idle_s  # waiting may begin any moment, and then counts from that moment
        due = since_s + self.idle_s
        if now < due:
            return due
        self._fail("idle", f"The upstream sent nothing for {self.idle_s:g} s.")
        return None

    def _fail(self, which: str, message: str) -> None:
        self.fired = which
        self.stream.fail(errors.ProxyError(errors.UPSTREAM_TIMEOUT, message))

    def _check_stall(self, now: float) -> float | None:
        if self.fired == "write_stall" or self._progress is None:
            return None
        due = self._progress.look(now)
        if self._progress.stalled:
            self.fired = "write_stall"
            self.stream.fail(errors.ProxyError(errors.CLIENT_STALLED, "The client stopped reading."))
            self.downstream.abort()
        return due

    def _check_keepalive(self, now: float) -> float | None:
        if self._keepalive is None or self._keepalive_s is None or self.fired is not None:
            return None
        since_s = self._waiting_since_s
        if since_s is None:
            return now + self._keepalive_s
        due = max(since_s, self._kept_alive_s) + self._keepalive_s
        if now < due:
            return due
        self._kept_alive_s = now
        self._keepalive()
        return now + self._keepalive_s
