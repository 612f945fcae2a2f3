"""Clients that ask a proxy at a steady pace, whatever became of those before them, and remember what each was told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.fakes.client import RecordingClient
from tests.fakes.quota_burst import CHAT, request
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

PAUSE_S: Final = 0.012
HANGS_S: Final = LONG_S  # a client that has waited so long was forgotten
# whose turn it is: wide limits, a limit that is soon used up, no limits
TURNS: Final = ("wide", "wide", "tight", "free")

_numbers = itertools.count(1)


class Asked(NamedTuple):
    """One request: whose, when it was sent and how long it took, and what was told.

    `checked` is one whose answer tells of limits; `unchecked` one that was let pass without.
    """

    role: str
    number: int
    sent_s: float
    took_s: float
    status: int
    code: str | None
    tells_limits: bool
    retry_after: str | None

    @property
    def checked(self) -> bool:
        return self.status == 200 and self.tells_limits

    @property
    def unchecked(self) -> bool:
        return self.status == 200 and not self.tells_limits and self.role != "free"

    @property
    def away(self) -> bool:
        return self.status == 503


class Load:
    """What the clients of one proxy ask. `secrets` are the keys of the three roles."""

    def __init__(self, port: int, secrets: Mapping[str, str]) -> None:
        self.asked: list[Asked] = []
        self.is_over = False
        self._port = port
        self._secrets = secrets

    def count(self, which: Callable[[Asked], object], since_s: float = 0.0, role: str = "") -> int:
        """How many of those sent since then, of that role if one is named."""
        found = [one for one in self.asked if one.sent_s >= since_s and role in ("", one.role)]
        return sum(bool(which(one)) for one in found)

    def first(self, which: Callable[[Asked], object], since_s: float) -> float | None:
        """When the first of them that was sent since then had its answer."""
        ends = [one.sent_s + one.took_s for one in self.asked if one.sent_s >= since_s and which(one)]
        return min(ends, default=None)

    @property
    def slowest_s(self) -> float:
        return max(one.took_s for one in self.asked)

    async def run(self) -> None:
        """Ask until it is over. Raises what goes wrong with a connection, and `TimeoutError` for one that hangs."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as clients:
            for role in itertools.cycle(TURNS):
                clients.create_task(self._ask(role, next(_numbers)))
                turn = loop.create_future()
                loop.call_later(PAUSE_S, turn.set_result, None)
                await turn
                if self.is_over:
                    return

    async def _ask(self, role: str, number: int) -> None:
        sent_s = time.monotonic()
        async with await RecordingClient.connect(self._port) as client:
            asking = client.ask("POST", CHAT, request(number), key=self._secrets[role])
            answer = await asyncio.wait_for(asking, HANGS_S)
        took_s = time.monotonic() - sent_s
        assert answer.whole
        code = None if answer.status == 200 else answer.error["code"]
        tells_limits = answer.header("x-ratelimit-limit-requests") is not None
        retry_after = answer.header("retry-after")
        self.asked.append(Asked(role, number, sent_s, took_s, answer.status, code, tells_limits, retry_after))


@contextlib.asynccontextmanager
async def asking(*loads: Load) -> AsyncIterator[None]:
    """All of them ask within it; afterwards everybody has been answered."""
    async with asyncio.TaskGroup() as tasks:
        for load in loads:
            tasks.create_task(load.run())
        try:
            yield
        finally:
            for load in loads:
                load.is_over = True
