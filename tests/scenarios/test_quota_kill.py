"""A proxy is killed with `kill -9` while it holds the one slot of a key: the slot comes back within 30 s.

By default the lease's end is read in Redis right after the kill, then brought near, as if the time had passed, and
another process admits the key when it has. With SLUICE_TEST_SLOW=1 the whole lease is waited for, in real time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

import pytest

from proxy.core.quota import LEASE_MS
from tests.fakes.client import RecordingClient
from tests.fakes.line import PATIENCE_S, chunk, head
from tests.fakes.quota_burst import CHAT, MOST_OUTPUT, request
from tests.fakes.quota_serving import configuration, remaining, serving
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.recordings import DONE, FINISH, ROLE
from tests.fakes.redis import running_redis
from tests.fakes.running import fresh_ledger
from tests.fakes.waiting import until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.redis import RedisServer
    from tests.fakes.served import Served

IS_SLOW: Final = os.environ.get("SLUICE_TEST_SLOW", "") == "1"
PROMISED_S: Final = 30.0
BUSY_S: Final = 30.0  # what a busy machine may add
NEAR_MS: Final = 1500
LIMIT: Final = 10_000
SLOTS: Final = "sluice:{team-a}:slots"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def ledger_url() -> Iterator[str]:
    with fresh_ledger() as url:
        yield url


class Stage:
    """Two proxies on one store and one ledger, before an upstream in the test's hand."""

    def __init__(self, upstream: RawUpstream, redis: RedisServer, doomed: Served, other: Served) -> None:
        self.upstream = upstream
        self.redis = redis
        self.doomed = doomed
        self.other = other

    async def begin(self) -> RecordingClient:
        """A stream through the proxy that will be killed; its client has the first event."""
        client = await RecordingClient.connect(self.doomed.port)
        client.send("POST", CHAT, {**request(0), "stream": True})
        peer = await self.accepted()
        await peer.send(head() + chunk(ROLE))
        answer = await asyncio.wait_for(client.head(), PATIENCE_S)
        assert await asyncio.wait_for(client.piece(answer), PATIENCE_S) == ROLE
        return client

    async def accepted(self) -> RawPeer:
        peer = await asyncio.wait_for(self.upstream.accept(), PATIENCE_S)
        await peer.request()
        return peer

    async def status(self) -> int:
        """What the other proxy says to a request; one that is admitted is answered."""
        async with await RecordingClient.connect(self.other.port) as client:
            client.send("POST", CHAT, {**request(1), "stream": True})
            asked = asyncio.get_running_loop().create_task(self.upstream.accept())
            told = asyncio.get_running_loop().create_task(client.answer())
            await asyncio.wait((asked, told), timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                peer = asked.result()
                await peer.request()
                await peer.send(head() + chunk(ROLE + FINISH + DONE) + b"0\r\n\r\n")
            else:
                asked.cancel()
                await asyncio.wait((asked,))
            answer = await asyncio.wait_for(told, PATIENCE_S)
        assert answer.whole
        assert answer.status == 200 or answer.error["code"] == "concurrency_limit_exceeded"
        return answer.status

    def now_ms(self) -> int:
        """Redis's own time."""
        with self.redis.client() as client:
            seconds, microseconds = client.time()
            return int(seconds) * 1000 + int(microseconds) // 1000

    def lease(self) -> tuple[bytes, float, int]:
        """The one slot: whose it is, when its lease ends, and for how long Redis keeps it at the most, in ms."""
        with self.redis.client() as client:
            [(name, end_ms)] = client.zrange(SLOTS, 0, -1, withscores=True)
            return name, end_ms, int(client.pttl(SLOTS))

    def bring_near(self, name: bytes) -> int:
        """Let the lease end soon; when."""
        end_ms = self.now_ms() + NEAR_MS
        with self.redis.client() as client:
            assert client.zadd(SLOTS, {name: end_ms}, xx=True, ch=True) == 1
        return end_ms


@contextlib.asynccontextmanager
async def stage(redis: RedisServer, ledger_url: str, folder: Path) -> AsyncIterator[Stage]:
    with RawUpstream() as upstream:
        config = configuration(
            f"http://127.0.0.1:{upstream.port}/v1",
            store={"url": redis.url, "timeout": 10},
            ledger=ledger_url,
            plan={"concurrency": 1, "tokens": [f"{LIMIT}/day"]},
        )
        async with serving([config] * 2, folder) as (doomed, other):
            yield Stage(upstream, redis, doomed, other)


async def test_the_slot_of_a_killed_process_comes_back(redis: RedisServer, ledger_url: str, tmp_path: Path) -> None:
    statuses: list[tuple[int, int]] = []  # and when they were asked for
    async with stage(redis, ledger_url, tmp_path) as scene:
        client = await scene.begin()
        assert await scene.status() == 429
        scene.doomed.process.kill()
        await scene.doomed.process.wait()
        killed_s, killed_ms = time.monotonic(), scene.now_ms()
        name, end_ms, kept_ms = scene.lease()
        assert killed_ms < end_ms <= killed_ms + LEASE_MS <= killed_ms + PROMISED_S * 1000
        assert kept_ms <= LEASE_MS
        lease_s = (end_ms - killed_ms) / 1000
        if not IS_SLOW:
            end_ms = scene.bring_near(name)

        async def is_admitted() -> bool:
            asked_ms = scene.now_ms()
            statuses.append((await scene.status(), asked_ms))
            return statuses[-1][0] == 200

        await until_asked(is_admitted, "the other process admits the key", PROMISED_S + BUSY_S)
        took_s = time.monotonic() - killed_s
        assert await scene.status() == 200, "and its slot is free again"
        left = await remaining(scene.other.port, "tokens")
        await client.close()
    how = "in real time" if IS_SLOW else f"shortened to {NEAR_MS / 1000:g} s"
    print(f"\nlease of {lease_s:.1f} s ({how}): admitted {took_s:.1f} s after the kill, {len(statuses) - 1} refusals")
    check(statuses, end_ms)
    assert left <= LIMIT - MOST_OUTPUT, "what the killed one reserved stays charged: nobody knows what it used"


def check(statuses: list[tuple[int, int]], end_ms: float) -> None:
    """Refused while the lease lasts, and admitted by the first request after it."""
    assert {status for status, _ in statuses[:-1]} == {429}, "the slot is still held right after the kill"
    assert all(asked_ms <= end_ms for _, asked_ms in statuses[:-1])
