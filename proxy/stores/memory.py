"""The embedded store of quotas: dictionaries in the event loop of the one worker there is."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from proxy.core import quota_state
from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import Demand, Granted, Limit, Limits, Refused, Reservation, amount_of, bounded, counter_name
from proxy.core.quota_state import KeyState
from proxy.core.quota_windows import Counter, bucket_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from proxy.stores.base import Recall


class MemoryQuotaStore:
    """A `QuotaStore` for one process.

    `clock_ms` is UNIX time in milliseconds that does not jump: the time at the start plus the monotonic time since.
    `recall` asks the ledger what was used in calendar windows of which nothing is known here, after a restart; without
    it they begin empty. Keys that have nothing left that counts are forgotten little by little: each admission looks at
    one key, so that none pays for many.
    """

    def __init__(self, clock_ms: Callable[[], int], recall: Recall | None = None) -> None:
        self._clock_ms = clock_ms
        self._recall = recall
        self._recalling: dict[str, asyncio.Future[bool]] = {}  # whether the ledger answered
        self._states: dict[str, KeyState] = {}
        self._turn: deque[tuple[str, KeyState]] = deque()  # the same, in the order in which they are looked at

    def __len__(self) -> int:
        return len(self._states)

    async def reserve(self, reservation_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused:
        """As the protocol says. Waits for nothing but the ledger, on the key's first exchange in a window."""
        while (answer := self.reserve_now(reservation_id, key_id, limits, demand)) is None:
            await self._recall_unknown(key_id, limits)
        return answer

    def reserve_now(self, reservation_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused | None:
        """As the protocol says: None where the ledger is to be asked."""
        state = self._states.get(key_id) or KeyState()
        sheet = state.sheet  # of these limits: all that they count in is known
        if self._recall is not None and (sheet is None or sheet.laid.limits is not limits) and _unknown(state, limits):
            return None
        now_ms = self._clock_ms()
        answer = quota_state.reserve(state, reservation_id, key_id, limits, demand, now_ms)
        if isinstance(answer, Granted):
            if key_id not in self._states:
                self._add(key_id, state)
            turn = self._turn
            if turn[0][1].look_ms > now_ms:
                turn.rotate(-1)
            else:
                self._look_at_next(now_ms)
        return answer

    async def settle(self, reservation: Reservation, used: Demand) -> None:
        """As the protocol says."""
        self.settle_now(reservation, used)

    def settle_now(self, reservation: Reservation, used: Demand) -> bool:
        """As the protocol says: there is nothing to wait for."""
        state = self._states.get(reservation.key_id)
        if state is not None:
            quota_state.settle(state, reservation, used)
        return True

    async def release(self, reservation: Reservation) -> None:
        """As the protocol says."""
        self.release_now(reservation)

    def release_now(self, reservation: Reservation) -> bool:
        """As the protocol says: there is nothing to wait for."""
        state = self._states.get(reservation.key_id)
        if state is not None:
            quota_state.release(state, reservation.id)
        return True

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Nothing to do: slots here have no lease. Who holds one ends with this store, and a pause harms neither."""

    async def _recall_unknown(self, key_id: str, limits: Limits) -> None:
        """Ask the ledger: one of those who want to know, and the others share its answer, or its failure."""
        while self._recall is not None and (unknown := _unknown(self._states.get(key_id), limits)):
            asked = self._recalling.get(key_id)
            if asked is None:
                await self._recall_windows(self._recall, key_id, unknown)
                continue
            await asyncio.wait((asked,))
            if not asked.cancelled() and not asked.result():
                raise _unreadable()

    async def _recall_windows(self, recall: Recall, key_id: str, unknown: Sequence[Limit]) -> None:
        asked = self._recalling[key_id] = asyncio.get_running_loop().create_future()
        now_ms = self._clock_ms()
        starts_s = {limit: bucket_at(limit.window, now_ms) for limit in unknown}
        try:
            self._restore(key_id, starts_s, await recall(key_id, starts_s))
            asked.set_result(True)
        except (SQLAlchemyError, TimeoutError) as error:
            asked.set_result(False)
            raise _unreadable() from error
        finally:
            del self._recalling[key_id]
            asked.cancel()  # unless there is an answer: who asked has gone, and another may ask

    def _restore(self, key_id: str, starts_s: Mapping[Limit, int], used: Mapping[Limit, Demand]) -> None:
        """Count what was used before. Nothing is known as well: it is not asked for again."""
        state = self._states.get(key_id) or self._add(key_id, KeyState())
        for limit, start_s in starts_s.items():
            amount = amount_of(bounded(used.get(limit, Demand())), limit.kind)
            state.counters.setdefault(counter_name(limit), Counter(limit.window, start_s, amount))

    def _add(self, key_id: str, state: KeyState) -> KeyState:
        self._states[key_id] = state
        self._turn.append((key_id, state))
        return state

    def _look_at_next(self, now_ms: int) -> None:
        """Forget the key whose turn it is if nothing of it counts any more."""
        key_id, state = self._turn.popleft()
        state.look_ms = quota_state.prune(state, now_ms)
        if state.look_ms:
            self._turn.append((key_id, state))
        else:
            del self._states[key_id]


def _unknown(state: KeyState | None, limits: Limits) -> list[Limit]:
    """The limits by the calendar of which nothing is known. An earlier window is enough: the store saw it end."""
    counters = state.counters if state is not None else {}
    return [
        limit
        for limit, name in zip(limits.windows, limits.names, strict=True)
        if not isinstance(limit.window, int) and name not in counters
    ]


def _unreadable() -> ProxyError:
    return ProxyError(STORE_UNAVAILABLE, "The usage ledger cannot be read.", retry_after_s=3.0)
