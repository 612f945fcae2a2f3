"""What the embedded store of quotas costs: CPU of an admission and its settlement, with 10 and with 100,000 keys.

    python -m tests.bench.quota

Four windows and a limit of concurrency. With many keys the figure is taken twice: of exchanges of all of them in turn,
where each finds its key's state in no cache of the processor, and of ten among them, which is what the store's own work
costs. The best of many short runs is given: others use the machine, too. Of 20,000 admissions one by one the longest is
given as well.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import uvloop

from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits
from proxy.stores.memory import MemoryQuotaStore

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = Limits(
    (
        Limit(Kind.REQUESTS, 10**9, 60),
        Limit(Kind.TOKENS, 10**12, 60),
        Limit(Kind.TOKENS, 10**14, Calendar.DAY),
        Limit(Kind.SPEND, 10**14, Calendar.MONTH),
    ),
    concurrency=10,
)
RESERVED = Demand(1, 4096, 2_457)
USED = Demand(1, 1052, 631)
RUN = 4000
RUNS = 40
STRIDE = 7919  # a prime: neighbours in time are no neighbours in memory


def now_ms() -> int:
    return int(time.time() * 1000)


async def exchange(store: MemoryQuotaStore, number: int, key_id: str) -> None:
    answer = await store.reserve(f"exc_{number}", key_id, LIMITS, RESERVED)
    assert isinstance(answer, Granted)
    await store.settle(answer.reservation, USED)


async def cpu_us(store: MemoryQuotaStore, key_ids: Sequence[str]) -> float:
    """CPU of an exchange, in microseconds."""
    best = float("inf")
    for _ in range(RUNS):
        began_s = time.process_time()
        for number in range(RUN):
            await exchange(store, number, key_ids[number * STRIDE % len(key_ids)])
        best = min(best, time.process_time() - began_s)
    return best / RUN * 1e6


async def longest_us(store: MemoryQuotaStore, key_ids: Sequence[str]) -> float:
    longest = 0.0
    for number in range(20_000):
        began_s = time.thread_time()
        await exchange(store, number, key_ids[number * STRIDE % len(key_ids)])
        longest = max(longest, time.thread_time() - began_s)
    return longest * 1e6


async def measure(keys: int) -> None:
    store = MemoryQuotaStore(now_ms)
    key_ids = [f"team-{number}" for number in range(keys)]
    for number, key_id in enumerate(key_ids):
        await exchange(store, number, key_id)
    gc.collect()
    every_us, ten_us = await cpu_us(store, key_ids), await cpu_us(store, key_ids[:10])
    print(
        f"{keys:>7} keys: {every_us:5.1f} us an exchange over all keys, {ten_us:5.1f} us over ten of them, "
        f"longest {await longest_us(store, key_ids):6.0f} us"
    )


if __name__ == "__main__":
    for many in (10, 100_000):
        uvloop.run(measure(many))
