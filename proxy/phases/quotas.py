"""Hold an exchange to the quota of its key: reserve what it may use, keep its slot, settle with what it used."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from proxy.core.quota import LEASE_MS, Demand, Granted, Refused
from proxy.core.ratelimit import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from proxy.core.quota import Limits, Reservation
    from proxy.stores.base import QuotaStore
    from proxy.telemetry.quotas import QuotaMetrics

_NANO_PER_MICRO: Final = 1000
# A client that aborts may ask again before the abort was noticed: a slot of its key that comes free so soon is its own.
_SLOT_PATIENCE_S: Final = 0.1
_SLOT_LOOK_S: Final = 0.025  # another process may free it


def demand_of(tokens: int, cost_nano_usd: int) -> Demand:
    """One request that uses so much; a part of a micro-USD counts as a whole."""
    return Demand(1, tokens, -(-cost_nano_usd // _NANO_PER_MICRO))


def _nothing() -> None:
    """Nobody waits for it."""


class Quotas:
    """The quotas of all keys, in `store`; knows which exchanges of this process hold a part of one.

    `later` runs what the store has to be waited for in the background, and then calls what it is given.
    """

    def __init__(
        self,
        store: QuotaStore,
        later: Callable[[Coroutine[object, None, None], Callable[[], None]], None],
        metrics: QuotaMetrics,
    ) -> None:
        self._store = store
        self._later = later
        self._metrics = metrics
        self._held: dict[str, Reservation] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    async def reserve(self, exchange_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | None:
        """Admit the exchange; None where its key has no limits.

        Raises `ProxyError` 429 for a key that has used up what it may, 503 when the store cannot be asked.
        """
        if not limits.windows and limits.concurrency is None:
            return None
        answer = await self._store.reserve(exchange_id, key_id, limits, demand)
        if isinstance(answer, Refused) and answer.limit is None:
            answer = await self._again(exchange_id, key_id, limits, demand, answer)
        if isinstance(answer, Refused):
            self._metrics.refused(key_id, answer.limit)
            raise refusal(answer, demand)
        return self._admitted(answer)

    def reserve_now(self, exchange_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | None:
        """`reserve` of an exchange that is admitted without waiting; None, and nothing has changed, of any other."""
        if not limits.windows and limits.concurrency is None:
            return None
        answer = self._store.reserve_now(exchange_id, key_id, limits, demand)
        return self._admitted(answer) if isinstance(answer, Granted) else None

    def _admitted(self, granted: Granted) -> Granted:
        reservation = granted.reservation
        if reservation.unchecked:
            self._metrics.unchecked(reservation.key_id)
        self._held[reservation.id] = reservation
        self._metrics.admitted(reservation.key_id, granted.stands)
        return granted

    async def more(self, reservation_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused:
        """Reserve `demand` for an exchange that is under way, which has its slot. Raises `ProxyError` as `reserve`."""
        answer = await self._store.reserve(reservation_id, key_id, limits, demand)
        if isinstance(answer, Refused):
            self._metrics.refused(key_id, answer.limit)
        else:
            if not self._store.release_now(answer.reservation):
                self._later(self._store.release(answer.reservation), _nothing)
            self._metrics.admitted(key_id, answer.stands)
        return answer

    def give_back(self, granted: Granted) -> None:
        """Charge nothing for what `more` has reserved."""
        reservation = granted.reservation
        self._metrics.settled(reservation.key_id, granted.stands, reservation.demand, Demand())
        if not self._store.settle_now(reservation, Demand()):
            self._later(self._store.settle(reservation, Demand()), _nothing)

    def settle(self, granted: Granted, used: Demand, then: Callable[[], None] | None = None) -> None:
        """Charge what was used in place of what was reserved, and free the slot; `then` is called when that is done."""
        reservation = granted.reservation
        del self._held[reservation.id]
        self._metrics.settled(reservation.key_id, granted.stands, reservation.demand, used)
        if self._store.settle_now(reservation, used):
            if self._waiting or then is not None:
                self._settled(reservation.key_id, then)
        else:
            done = functools.partial(self._settled, reservation.key_id, then)
            self._later(self._store.settle(reservation, used), done)

    def release(self, granted: Granted) -> None:
        """Free the slot of an exchange that nobody waits for any more; what it used is still to be found out."""
        reservation = granted.reservation
        if self._store.release_now(reservation):
            self._freed(reservation.key_id)
        else:
            self._later(self._store.release(reservation), functools.partial(self._freed, reservation.key_id))

    def _settled(self, key_id: str, then: Callable[[], None] | None) -> None:
        self._freed(key_id)
        if then is not None:
            then()

    def _freed(self, key_id: str) -> None:
        for waiting in self._waiting.get(key_id, ()):
            if not waiting.done():
                waiting.set_result(None)

    async def keep(self) -> None:
        """Renew the slots of exchanges in flight, until cancelled."""
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            if self._held:
                await self._store.renew(list(self._held.values()))

    async def _again(
        self, exchange_id: str, key_id: str, limits: Limits, demand: Demand, answer: Granted | Refused
    ) -> Granted | Refused:
        """Try once more whenever an exchange of the key ends within the patience for it, and now and then."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _SLOT_PATIENCE_S
        while isinstance(answer, Refused) and answer.limit is None and (left_s := deadline_s - loop.time()) > 0:
            await self._until_freed(key_id, min(left_s, _SLOT_LOOK_S))
            answer = await self._store.reserve(exchange_id, key_id, limits, demand)
        return answer

    async def _until_freed(self, key_id: str, patience_s: float) -> None:
        freed = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key_id, set())
        waiting.add(freed)
        try:
            await asyncio.wait({freed}, timeout=patience_s)
        finally:
            waiting.discard(freed)
            if not waiting:
                self._waiting.pop(key_id, None)
