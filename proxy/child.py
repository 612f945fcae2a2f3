"""A worker as its supervisor sees it: a process, the channel to it, and its private ops listener."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from proxy.control import Adopt, Begin, Channel, Counted, Done, Failed, Ready, Try
from proxy.telemetry.merging import unpack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.nursery import Process
    from proxy.telemetry.merging import Family

_ASK_TIMEOUT_S: Final = 5.0
_INSIDE: Final = aiohttp.ClientTimeout(total=2.0)
# from the end of its channel, which it closes last, to its end
_EXIT_S: Final = 10.0
# reading all keys, and the table of an encoding that was not needed before
_DO_S: Final = 30.0


class Child:
    """A worker's process. `serial` is its own; its `number` was that of the process whose place it took."""

    def __init__(self, begin: Begin, serial: int, process: Process, channel: Channel) -> None:
        self.number = begin.number
        self.serial = serial
        self.process = process
        self.channel = channel
        self.is_ready = False
        self.drained = frozenset(begin.drained)
        self.failure: str | None = None
        self.last_counts: Sequence[Family] | None = None
        self._over = asyncio.Event()
        self._doing: asyncio.Future[str | None] | None = None
        self._ops_path = Path(begin.ops_path)
        self._session = aiohttp.ClientSession(
            "http://worker",
            connector=aiohttp.UnixConnector(begin.ops_path),
            timeout=aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S),
        )

    @classmethod
    async def start(cls, begin: Begin, serial: int, fork: Callable[[int], Awaitable[Process]]) -> Child:
        """Start a worker: `fork` makes its process, and gives it the descriptor of its channel. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await fork(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        channel = await Channel.over(ours)
        channel.send(begin)
        return cls(begin, serial, process, channel)

    async def ended(self, on_ready: Callable[[], None]) -> int | None:
        """Hear what it says until it has ended; its exit code, as `Process.wait` says."""
        while (message := await self.channel.receive()) is not None:
            if isinstance(message, Ready):
                self.is_ready = True
                on_ready()
            elif isinstance(message, Failed):
                self.failure = message.why
            elif isinstance(message, Done):
                self._has_done(message.why)
            elif isinstance(message, Counted):
                self.last_counts = unpack(message.snapshot)
        self.is_ready = False
        self._has_done(None)  # who takes its place begins with what is adopted by then
        self._over.set()
        try:
            return await asyncio.wait_for(self.process.wait(), _EXIT_S)
        except TimeoutError:
            self.kill()
            return await self.process.wait()

    async def does(self, what: Try | Adopt) -> str | None:
        """Have it try or adopt a configuration; None when that is done, else why it cannot."""
        if self._over.is_set():
            return None  # who takes its place begins with what is adopted by then
        self._doing = asyncio.get_running_loop().create_future()
        self.channel.send(what)
        try:
            return await asyncio.wait_for(self._doing, _DO_S)
        except TimeoutError:
            return f"worker {self.number} does not answer"

    def _has_done(self, why: str | None) -> None:
        if self._doing is not None and not self._doing.done():
            self._doing.set_result(why)

    async def is_over(self, patience_s: float) -> bool:
        """Wait up to `patience_s` seconds for its end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), patience_s)
        return self._over.is_set()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()

    async def close(self) -> None:
        """Let go of what it leaves behind."""
        await self.channel.close()
        await self._session.close()
        await asyncio.to_thread(self._ops_path.unlink, missing_ok=True)

    async def problems(self) -> list[str]:
        """What keeps it from being ready."""
        if not self.is_ready:
            return [f"worker {self.number} is starting"]
        try:
            async with self._session.get("/readyz") as answer:
                found: dict[str, Any] = msgspec.json.decode(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return [f"worker {self.number} does not answer"]
        return [f"worker {self.number}: {problem}" for problem in found["why"]]

    async def inside(self, question: bytes) -> bytes | None:
        """What it answers to a question of the admin API, both packed; None if it does not answer in time."""
        try:
            async with self._session.post("/inside", data=question, timeout=_INSIDE) as answer:
                return await answer.read() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def counts(self) -> Sequence[Family] | None:
        """What it has counted so far; None if it does not answer."""
        try:
            async with self._session.get("/snapshot") as answer:
                return unpack(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            return None


def how_it_ended(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "nobody knows how, as the process that it was forked from has ended"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
