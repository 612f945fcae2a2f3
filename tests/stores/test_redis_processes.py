"""Four processes at once on one Redis: what is admitted never exceeds the limit."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import redis

from tests.fakes.quota_crowd import LIMITS, TOKENS
from tests.fakes.waiting import LONG_S

ROOT = Path(__file__).parent.parent.parent


def test_the_sum_of_what_is_admitted_is_what_fits(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, "-m", "tests.fakes.quota_crowd", redis_url, prefix, "125"]
    crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    try:
        with redis.Redis.from_url(redis_url) as client:
            for _ in crowd:
                assert client.brpop([f"{prefix}:ready"], timeout=LONG_S)
            client.lpush(f"{prefix}:go", *[1] * len(crowd))
        admitted = [int(process.communicate(timeout=LONG_S)[0]) for process in crowd]
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    assert sum(admitted) == LIMITS.windows[0].amount // TOKENS
