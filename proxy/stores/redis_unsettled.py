"""Settlements that Redis could not be told: kept, and repeated in the background until it answers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from proxy.stores.redis_link import Call, RedisLink, Script, StoreAwayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.stores.redis_link import Word
    from proxy.tasks import BackgroundTasks

_log = logging.getLogger("sluice.store")

MOST: Final = 20_000
"""Settlements kept; beyond it the oldest are dropped, and what they reserved stays charged."""

REMEMBERED_MS: Final = 900_000
"""How long Redis remembers that an exchange is settled: for a repetition after a lost answer."""

_BATCH: Final = 200
_PAUSE_S: Final = 0.25


class Settlement:
    """One exchange to settle, which ended at `ended_s`. `words` are what `settle.lua` wants of its windows."""

    __slots__ = ("_ended_s", "_keys", "_words", "id")

    def __init__(self, reservation_id: str, keys: Sequence[str], words: Sequence[Word], ended_s: float) -> None:
        self.id = reservation_id
        self._keys = keys
        self._words = words
        self._ended_s = ended_s

    def call(self, script: Script, now_s: float) -> Call:
        """The call for it. A late one may have been done and forgotten, so that it corrects what is open, no more."""
        age_ms = int((now_s - self._ended_s) * 1000)
        return Call(script, self._keys, self.id, (REMEMBERED_MS, age_ms, *self._words))


class Unsettled:
    """Settles through a link, again and again where it must. `clock` is monotonic, in seconds."""

    def __init__(self, link: RedisLink, tasks: BackgroundTasks, clock: Callable[[], float]) -> None:
        self._link = link
        self._tasks = tasks
        self._clock = clock
        self._script = Script("settle")
        self._kept: dict[str, Settlement] = {}
        self._repeating: asyncio.Task[None] | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def settle(self, settlement: Settlement) -> None:
        """Settle now, or later if the store does not answer."""
        # kept before the first wait: whoever cancels this loses nothing
        self._keep(settlement)
        try:
            await self._link.ask(settlement.call(self._script, self._clock()))
        except StoreAwayError:
            self._repeat()
        except asyncio.CancelledError:
            self._repeat()
            raise
        else:
            self._kept.pop(settlement.id, None)

    def settle_later(self, settlement: Settlement) -> None:
        """Settle in the background."""
        self._keep(settlement)
        self._repeat()

    async def close(self) -> None:
        """Try what is left once more, even if the store was away; what fails now stays charged as it was reserved."""
        if self._repeating is not None:
            self._repeating.cancel()
            await asyncio.wait((self._repeating,))
        left = len(self._kept)
        if left:
            await self._try_batch(force=True)
        # a batch that delivers nothing is the last: its nodes are away
        while 0 < len(self._kept) < left:
            left = len(self._kept)
            await self._try_batch()
        if self._kept:
            _log.error("%d settlements of quotas could not be delivered", len(self._kept))

    def _keep(self, settlement: Settlement) -> None:
        self._kept[settlement.id] = settlement
        if len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]
            self.dropped += 1

    def _repeat(self) -> None:
        if self._repeating is None or self._repeating.done():
            self._repeating = self._tasks.start(self._repeat_until_empty(), "settlements of quotas")

    async def _repeat_until_empty(self) -> None:
        while self._kept:
            if not await self._try_batch():
                await asyncio.sleep(max(_PAUSE_S, self._link.retry_in_s))

    async def _try_batch(self, *, force: bool = False) -> bool:
        """Whether the store answered all of it. `force` asks also a store that is known to be away."""
        batch = list(self._kept.values())[:_BATCH]
        now_s = self._clock()
        answers = await self._link.ask_all([one.call(self._script, now_s) for one in batch], force=force)
        for one, answer in zip(batch, answers, strict=True):
            if self._kept.pop(one.id, None) is not None and answer is None:
                # behind the others: a node of a cluster that is away holds up nobody else
                self._kept[one.id] = one
        return None not in answers
