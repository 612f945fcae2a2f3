"""One of several processes that all ask a shared store at the same moment: `python quota_crowd.py URL PREFIX COUNT`.

Waits for a word in the list PREFIX:go, and prints how many were admitted.
"""

from __future__ import annotations

import asyncio
import os
import sys

import redis

from proxy.core.quota import Demand, Granted, Kind, Limit, Limits
from tests.fakes.redis import open_store

LIMITS = Limits((Limit(Kind.TOKENS, 10_000, 3600), Limit(Kind.REQUESTS, 10_000, 60)), concurrency=10_000)
TOKENS = 37


async def main(url: str, prefix: str, count: int) -> None:
    # the test is about how many are admitted, not how fast: a slow machine must not refuse for the time it takes
    store = open_store(url, prefix=prefix, timeout_s=20)
    with redis.Redis.from_url(url) as client:
        client.lpush(f"{prefix}:ready", 1)
        client.brpop([f"{prefix}:go"], timeout=60)
    asked = (store.reserve(f"{os.getpid()}_{number}", "team", LIMITS, Demand(1, TOKENS)) for number in range(count))
    answers = await asyncio.gather(*asked)
    print(sum(isinstance(answer, Granted) for answer in answers))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
