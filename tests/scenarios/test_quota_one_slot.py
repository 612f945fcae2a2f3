"""Promise 3 and 7: one exchange at a time, and its slot is free the moment its client is gone, a thousand times over.

Nobody waits for the abort to be noticed: the next request is sent in the same turn of the loop. Between two workers it
is sent SLUICE_TEST_ROUNDS times (40 unless that says otherwise): one looks every 25 ms whether the other freed a slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, PlanConfig, StoreConfig
from proxy.config.values import Secret, SecretUrl
from proxy.phases import quotas
from tests.fakes.client import RecordingClient
from tests.fakes.line import LAST_CHUNK, PATIENCE_S, chunk, head
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.recordings import DONE, FINISH, ROLE, delta
from tests.fakes.redis import running_redis
from tests.fakes.running import KEY, running, upstream_config
from tests.fakes.settled import nothing_held
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.redis import RedisServer
    from tests.fakes.running import Running

ROUNDS: Final = 1000
ROUNDS_BETWEEN_TWO: Final = int(os.environ.get("SLUICE_TEST_ROUNDS", "40"))
CHAT: Final = "/v1/chat/completions"
STREAM: Final = {"model": "m", "stream": True, "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
# where in the body its client leaves: at its start, after an event, in the middle of one, after many
SEEN: Final = (b"", ROLE, ROLE + delta("a")[:20], ROLE + delta("a") * 50)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def one_at_a_time(url: str) -> dict[str, Any]:
    store = StoreConfig(url=SecretUrl(url), timeout=5.0)  # a machine under test is busy
    key = KeyConfig(id="team-a", secret=Secret(KEY), plan="p")
    return {"plans": {"p": PlanConfig(concurrency=1)}, "keys": (key,), "settings": {"store": store}}


class Stage:
    """Proxies that share a store, before an upstream in the test's hand."""

    def __init__(self, upstream: RawUpstream, proxies: Sequence[Running]) -> None:
        self._upstream = upstream
        self.proxies = proxies
        self.longest_s = 0.0

    async def client(self, number: int) -> RecordingClient:
        """A connection to the proxy whose turn it is."""
        return await RecordingClient.connect(self.proxies[number % len(self.proxies)].port)

    async def admitted(self, client: RecordingClient, number: int) -> RawPeer:
        """Ask, and see the request at the upstream; a refusal fails."""
        began_s = time.monotonic()
        client.send("POST", CHAT, STREAM)
        asked = asyncio.get_running_loop().create_task(self._upstream.accept())
        told = asyncio.get_running_loop().create_task(client.head())
        await asyncio.wait((asked, told), timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        told.cancel()
        if not asked.done():
            asked.cancel()
            await asyncio.wait((asked,))
            raise AssertionError(f"round {number} was not admitted: {told}")
        await asyncio.wait((told,))
        peer = asked.result()
        await peer.request()
        return peer

    async def begun(self, client: RecordingClient, number: int) -> RawPeer:
        """A stream in the middle: its client has all whole events that were sent."""
        peer = await self.admitted(client, number)
        sent = SEEN[number % len(SEEN)]
        await peer.send(head() + (chunk(sent) if sent else b""))
        answer = await asyncio.wait_for(client.head(), PATIENCE_S)
        assert answer.status == 200
        whole = sent[: sent.rfind(b"\n\n") + 2]
        while answer.body != whole:
            await asyncio.wait_for(client.piece(answer), PATIENCE_S)
        return peer

    async def whole(self, number: int) -> None:
        """An answer to its end."""
        client = await self.client(number)
        peer = await self.admitted(client, number)
        await peer.send(head() + chunk(ROLE + FINISH + DONE) + LAST_CHUNK)
        answer = await asyncio.wait_for(client.answer(), PATIENCE_S)
        assert (answer.status, answer.whole) == (200, True)
        await client.close()
        peer.close()

    async def abort_again_and_again(self, rounds: int) -> None:
        """Leave each stream in the middle, and have the next admitted before anything else is waited for."""
        client = await self.client(0)
        peer = await self.begun(client, 0)
        for number in range(1, rounds):
            left, aborted = client, peer
            client = await self.client(number)
            leave(left, number)  # and in the same turn of the loop, the next request
            peer = await self.begun(client, number)
            await asyncio.wait_for(aborted.ended(), PATIENCE_S)
            aborted.close()
            left.writer.transport.abort()
        await client.reset()
        await asyncio.wait_for(peer.ended(), PATIENCE_S)


def leave(client: RecordingClient, number: int) -> None:
    """Hang up: with a RST, with a FIN, with a FIN that leaves the other direction open."""
    if number % 3 == 0:
        linger = struct.pack("ii", 1, 0)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.writer.transport.abort()
    elif number % 3 == 1:
        client.writer.close()
    else:
        client.writer.write_eof()


@contextlib.asynccontextmanager
async def stage(url: str, count: int) -> AsyncIterator[Stage]:
    with RawUpstream() as upstream:
        config = upstream_config(f"http://127.0.0.1:{upstream.port}/v1", usage="as-asked")
        async with contextlib.AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(running({"up": config}, **one_at_a_time(url))) for _ in range(count)
            ]
            yield Stage(upstream, proxies)


@pytest.mark.parametrize(
    ("store", "proxies", "rounds"),
    [("memory", 1, ROUNDS), ("redis", 1, ROUNDS), ("redis", 2, ROUNDS_BETWEEN_TWO)],
    ids=["memory", "redis", "redis-two-workers"],
)
async def test_the_slot_of_an_aborted_stream_is_the_next_request_s(
    store: str, proxies: int, rounds: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://"
    if store == "redis":
        url = request.getfixturevalue("redis").url
    # a busy machine may keep a process waiting; a slot that is lost does not come back either
    monkeypatch.setattr(quotas, "_SLOT_PATIENCE_S", LONG_S)
    async with stage(url, proxies) as scene:
        began_s = time.monotonic()
        await scene.abort_again_and_again(rounds)
        took_s = time.monotonic() - began_s
        await scene.whole(rounds)
        for proxy in scene.proxies:
            await nothing_held(proxy)
            assert proxy.worker.app._quotas._held == {}
            assert proxy.total("sluice_quota_rejections_total") == 0
        if store == "redis":
            await until(lambda: slots(request.getfixturevalue("redis")) == 0, "no slot is left", LONG_S)
        await until(lambda: len(exchanges(scene)) == rounds + 1, "the log lines", LONG_S)
        outcomes = Counter(line["outcome"] for line in exchanges(scene))
    assert outcomes == {"client_gone": rounds, "ok": 1}
    longest_ms = scene.longest_s * 1000
    print(f"\n{store}, {proxies} workers: {rounds} aborts in {took_s:.1f} s, the longest wait {longest_ms:.0f} ms")


def exchanges(scene: Stage) -> list[dict[str, Any]]:
    return [line for proxy in scene.proxies for line in proxy.exchanges]


def slots(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.zcard("sluice:{team-a}:slots"))
