"""The shared store of quotas: Redis, Valkey, or what speaks like them, alone, behind Sentinel or as a cluster.

Each operation is one script over all that a key has, so that nobody sees half of it. Its arithmetic is that of
`core/quota_windows.py`; the clock is Redis's own. An exchange has a record there, which tells that it is open or
settled: every call may be repeated after a lost answer, and counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from msgspec.structs import replace

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.quota import (
    LEASE_MS,
    Calendar,
    Demand,
    Granted,
    Limit,
    Limits,
    Refused,
    Reservation,
    amount_of,
    bounded,
    counter_name,
)
from proxy.core.quota_stands import NOTHING, Stands, laid_out
from proxy.core.quota_state import refused
from proxy.core.quota_windows import Counter
from proxy.stores.redis_link import Call, RedisLink, Script, StoreAwayError
from proxy.stores.redis_unsettled import Settlement, Unsettled
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from proxy.stores.redis_link import Seen

    Recall = Callable[[str, Mapping[Limit, int]], Awaitable[Mapping[Limit, Demand]]]

_log = logging.getLogger("sluice.store")

DEFAULT_TIMEOUT_S: Final = 0.25
FORGET_MS: Final = 86_400_000
"""An exchange that was not renewed for so long is not awaited any more: what it reserved stays charged."""

_RENEW_BATCH: Final = 200
_RECALLS: Final = 3  # Redis may be emptied, or a window end, between a recall and what follows it
_LEAST_RETRY_S: Final = 1.0
_UNKNOWN_BUCKET: Final = -1


class RedisQuotaStore:
    """A `QuotaStore` that any number of workers share.

    `allow` is `store.on_failure`: without an answer an exchange is let pass unchecked instead of refused; `unchecked`
    counts these. `recall(key_id, {limit: start in seconds of UNIX time})` asks the ledger what was used in calendar
    windows that Redis does not know, because they are new or were lost; without it they begin empty. `clock` is
    monotonic, in seconds. `seen(operation, seconds, error)` is told of every call. Raises `ValueError` for a bad URL.
    Making one reads the scripts from files: not while an event loop runs.
    """

    def __init__(
        self,
        url: str,
        *,
        allow: bool,
        clock: Callable[[], float],
        seen: Seen,
        recall: Recall | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        prefix: str = "sluice",
    ) -> None:
        self._link = RedisLink(url, timeout_s=timeout_s, clock=clock, seen=seen)
        self._clock = clock
        self._allow = allow
        self._recall = recall
        self._recalls = int(recall is not None)  # the word that tells scripts
        self._prefix = prefix
        self._reserve = Script("reserve")
        self._renew = Script("renew")
        self._release = Script("release")
        self._restore = Script("restore")
        self._tasks = BackgroundTasks()
        self._unsettled = Unsettled(self._link, self._tasks, clock)
        self._recalling: dict[tuple[str, Limits], asyncio.Task[None]] = {}
        self.unchecked = 0

    @property
    def unsettled(self) -> int:
        """Settlements that Redis could not be told yet."""
        return len(self._unsettled)

    @property
    def is_away(self) -> bool:
        """Redis, or a node of its cluster, has not answered for some time, or never has: for `/readyz`."""
        return self._link.is_away

    async def probe(self) -> bool:
        """Ask Redis for a sign of life, unless it is known to be away; whether it gave one in time. Never raises."""
        return await self._link.probe()

    def reserve_now(self, *_: object) -> None:
        """As the protocol says: Redis is always waited for."""

    def settle_now(self, *_: object) -> bool:
        """As the protocol says."""
        return False

    def release_now(self, *_: object) -> bool:
        """As the protocol says."""
        return False

    async def reserve(self, reservation_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused:
        """As the protocol says, also after a lost answer: what it may have reserved is given back."""
        reservation = Reservation(reservation_id, key_id, limits, bounded(demand), ())
        try:
            return await self._admit(reservation)
        except StoreAwayError as error:
            if error.asked:
                self._withdraw(reservation)
            if self._allow:
                self.unchecked += 1
                return Granted(replace(reservation, unchecked=True), Stands())
            wait_s = max(error.retry_in_s, _LEAST_RETRY_S)
            message = "Quotas cannot be checked at the moment."
            raise ProxyError(STORE_UNAVAILABLE, message, retry_after_s=wait_s) from error
        except asyncio.CancelledError:
            self._withdraw(reservation)
            raise

    async def settle(self, reservation: Reservation, used: Demand) -> None:
        """As the protocol says: at once if Redis answers."""
        if not reservation.unchecked:
            await self._unsettled.settle(self._settlement(reservation, bounded(used)))

    async def release(self, reservation: Reservation) -> None:
        """As the protocol says."""
        if not reservation.unchecked:
            # else the slot is free when the exchange is settled
            with contextlib.suppress(StoreAwayError):
                await self._link.ask(self._keeping(self._release, reservation))

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """As the protocol says, in one round trip for many. A Redis that was emptied learns of them again."""
        calls = [self._keeping(self._renew, one) for one in reservations if not one.unchecked]
        for first in range(0, len(calls), _RENEW_BATCH):
            answers = await self._link.ask_all(calls[first : first + _RENEW_BATCH])
            if None in answers:
                _log.warning("leases of %d exchanges in flight could not be renewed", answers.count(None))

    async def close(self) -> None:
        """Settle what is left, if Redis answers, and close the connections."""
        await self._unsettled.close()
        await self._tasks.close(0)
        await self._link.close()

    async def _admit(self, reservation: Reservation) -> Granted | Refused:
        answer = await self._ask_to_reserve(reservation)
        for _ in range(_RECALLS):
            if answer.verdict != "missing" or self._recall is None:
                break
            await self._recall_missing(self._recall, reservation, answer)
            answer = await self._ask_to_reserve(reservation)
        limits = reservation.limits
        if answer.verdict == "granted":
            stands = Stands(laid_out(limits, answer.counters), NOTHING, answer.now_ms)
            return Granted(replace(reservation, buckets=answer.buckets), stands)
        if answer.verdict in {"over", "missing"}:
            # it was withdrawn after its answer was lost, and arrived only now; or Redis does not keep what it is told
            raise StoreAwayError(asked=False, retry_in_s=0)
        return refused(limits, reservation.demand, answer.counters, answer.now_ms)

    async def _ask_to_reserve(self, reservation: Reservation) -> Answer:
        return read_answer(await self._link.ask(self.reserving(reservation)), reservation.limits)

    def reserving(self, reservation: Reservation) -> Call:
        """The call that reserves."""
        limits = reservation.limits
        words: list[str | int] = [LEASE_MS, -1 if limits.concurrency is None else limits.concurrency, FORGET_MS]
        words.append(self._recalls)
        for limit in limits.windows:
            words += (_window_word(limit), limit.amount, amount_of(reservation.demand, limit.kind))
        return Call(self._reserve, self._keys(reservation), reservation.id, words)

    async def _recall_missing(self, recall: Recall, reservation: Reservation, answer: Answer) -> None:
        """Ask the ledger, one task for all who wait for the same, and tell Redis."""
        asked = reservation.key_id, reservation.limits
        task = self._recalling.get(asked)
        if task is None:
            pairs = zip(reservation.limits.windows, answer.counters, strict=True)
            starts = {limit: counter.bucket for limit, counter in pairs if isinstance(limit.window, Calendar)}
            task = self._tasks.start(self._recall_windows(recall, asked[0], starts), "recall of quotas")
            self._recalling[asked] = task
            task.add_done_callback(lambda _: self._recalling.pop(asked))
        await asyncio.wait((task,))
        if task.cancelled() or task.exception() is not None:
            raise StoreAwayError(asked=False, retry_in_s=0)

    async def _recall_windows(self, recall: Recall, key_id: str, starts: Mapping[Limit, int]) -> None:
        found = await recall(key_id, starts)
        words: list[str | int] = []
        for limit, start_s in starts.items():
            amount = amount_of(bounded(found.get(limit, Demand())), limit.kind)
            words += (_window_word(limit), start_s, amount)
        keys = _window_keys(_tag(self._prefix, key_id), tuple(starts))
        await self._link.ask(Call(self._restore, keys, "", words))

    def _withdraw(self, reservation: Reservation) -> None:
        self._unsettled.settle_later(self._settlement(reservation, Demand()))

    def _settlement(self, reservation: Reservation, used: Demand) -> Settlement:
        words: list[str | int] = [self._recalls]
        for limit, bucket in self._charges(reservation):
            words += (_window_word(limit), amount_of(reservation.demand, limit.kind), amount_of(used, limit.kind))
            words.append(bucket)
        return Settlement(reservation.id, self._keys(reservation), words, self._clock())

    def _keeping(self, script: Script, reservation: Reservation) -> Call:
        """The call that keeps a reservation, with its slot or without."""
        words: list[str | int] = [LEASE_MS, FORGET_MS, self._recalls]
        for limit, bucket in self._charges(reservation):
            words += (_window_word(limit), amount_of(reservation.demand, limit.kind), bucket)
        return Call(script, self._keys(reservation), reservation.id, words)

    def _charges(self, reservation: Reservation) -> Iterator[tuple[Limit, int]]:
        windows = reservation.limits.windows
        return zip(windows, reservation.buckets or (_UNKNOWN_BUCKET,) * len(windows), strict=True)

    def _keys(self, reservation: Reservation) -> tuple[str, ...]:
        tag = _tag(self._prefix, reservation.key_id)
        return f"{tag}:exchange:{reservation.id}", f"{tag}:slots", *_window_keys(tag, reservation.limits.windows)


class Answer(NamedTuple):
    """What `reserve.lua` says: the counters as they are now, and the buckets charged."""

    verdict: str
    now_ms: int
    counters: tuple[Counter, ...]
    buckets: tuple[int, ...]


def read_answer(text: bytes, limits: Limits) -> Answer:
    """The answer to a call that reserves."""
    verdict, *words = text.decode("ascii").split()
    if not words:
        return Answer(verdict, 0, (), ())
    now_ms, *numbers = map(int, words)
    windows = limits.windows
    counters = tuple([Counter(limit.window, *numbers[3 * i : 3 * i + 3]) for i, limit in enumerate(windows)])
    return Answer(verdict, now_ms, counters, tuple(numbers[3 * len(windows) :]))


@functools.lru_cache(4096)
def _tag(prefix: str, key_id: str) -> str:
    """What all names of a key begin with. What is in braces decides the slot of a cluster, and holds no brace."""
    return f"{prefix}:{{{quote(key_id, safe='')}}}"


@functools.lru_cache(4096)
def _window_keys(tag: str, windows: tuple[Limit, ...]) -> tuple[str, ...]:
    return tuple(f"{tag}:{counter_name(limit)}" for limit in windows)


def _window_word(limit: Limit) -> str | int:
    return limit.window.value if isinstance(limit.window, Calendar) else limit.window * 1000
