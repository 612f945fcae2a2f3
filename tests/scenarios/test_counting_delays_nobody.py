"""Counting delays nobody: thirty long streams are left at one moment, and another one goes on as if it were alone."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.fakes.line import CHAT_REQUEST, chunk, head
from tests.fakes.raw_client import RawClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import KEY
from tests.fakes.served import served
from tests.fakes.usage_recordings import said

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.served import Served

STREAMS: Final = 30
STREAM_BYTES: Final = 5 * 1024 * 1024
EVENT_CHARS: Final = 600
LOGPROBS: Final = {"content": [{"token": "of", "logprob": -0.25, "bytes": [111, 102]}] * 30}
TICK: Final = chunk(said("tick"))
TICKS_ALONE: Final = 1000
LIMIT_S: Final = 0.005
TRIES: Final = 20  # the machine may be busy with something else: one of them must be as if it were not
WORDS: Final = (
    "the",
    "of",
    "language models",
    "127",
    "streams,",
    "however;",
    "Straße",
    "海",
    "in_flight",
    ":=",
    "{settle}",
)


class Stream(NamedTuple):
    """Both ends of a stream through the proxy."""

    client: RawClient
    peer: RawPeer

    async def tick(self) -> float:
        """Send an event through; the seconds until the client has it."""
        began_s = time.perf_counter()
        await self.peer.send(TICK)
        received_bytes = 0
        while received_bytes < len(TICK):
            received_bytes += len(await self.client.recv())
        assert received_bytes == len(TICK)
        return time.perf_counter() - began_s

    async def fill(self, wire: bytes, mark: bytes) -> None:
        """Let the client receive `wire`, which ends with `mark`."""
        await asyncio.gather(self.peer.send(wire), self._drain(mark))

    async def _drain(self, mark: bytes) -> None:
        tail = b""
        while mark not in tail:
            tail = tail[-len(mark) :] + await self.client.recv()


def configuration(upstream: RawUpstream, folder: Path) -> dict[str, Any]:
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "upstreams": {"up": {"base_url": f"http://127.0.0.1:{upstream.port}/v1", "auth": "none"}},
        "keys": [{"id": "team-a", "secret": KEY}],
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
    }


async def opened(proxy: Served, upstream: RawUpstream) -> Stream:
    client = await RawClient.connect(proxy.port)
    await client.post("/v1/chat/completions", CHAT_REQUEST)
    peer = await upstream.accept()
    await peer.answer(head())
    await client.recv_until(b"\r\n\r\n")
    return Stream(client, peer)


def text(draw: random.Random, chars: int) -> str:
    """Such as takes a tokenizer its time: no two words in the same order."""
    words = " ".join(draw.choices(WORDS, k=chars // 4))
    return words[:chars]


def wires() -> list[bytes]:
    """A long body for each stream. What is left to decode and to count when it is aborted is different for each."""
    draw = random.Random(1)
    events = [chunk(said(text(draw, EVENT_CHARS), logprobs=LOGPROBS)) for _ in range(50)]
    long = b"".join(draw.choices(events, k=STREAM_BYTES // len(events[0]) + 1))
    short = chunk(said(text(draw, 100)))
    return [long + short * 5 * number for number in range(STREAMS)]


def settled(proxy: Served) -> int:
    """How many exchanges have ended. Lines are not decoded: it would take this process from the ticking."""
    return proxy.out.count(b'"event":"exchange"')


async def delays(proxy: Served, upstream: RawUpstream, ticking: Stream, bodies: list[bytes]) -> tuple[float, float]:
    """The longest that an event took while all other streams are aborted and settled, and while nothing happens."""
    streams = [await opened(proxy, upstream) for _ in bodies]
    marks = [b": end of %d\n\n" % number for number in range(len(bodies))]
    await asyncio.gather(
        *(stream.fill(body + chunk(mark), mark) for stream, body, mark in zip(streams, bodies, marks, strict=True))
    )
    alone = sorted([await ticking.tick() for _ in range(TICKS_ALONE)])
    ended = settled(proxy) + len(streams)
    during = []
    for stream in streams:
        stream.client.close()
    while settled(proxy) < ended:
        during.append(await ticking.tick())
    for stream in streams:
        stream.peer.close()
    return max(during), alone[-TICKS_ALONE // 100]


async def test_thirty_aborted_streams_delay_no_event_by_5_ms(tmp_path: Path) -> None:
    """Events go through one after the other; each abort leaves text to decode and to count."""
    bodies = wires()
    with RawUpstream() as upstream:
        async with served(configuration(upstream, tmp_path), tmp_path) as proxy:
            ticking = await opened(proxy, upstream)
            figures = []
            for _ in range(TRIES):
                longest_s, alone_s = await delays(proxy, upstream, ticking, bodies)
                figures.append(f"{longest_s * 1000:.1f} ms, alone {alone_s * 1000:.1f} ms")
                if longest_s - alone_s <= LIMIT_S:
                    break
            else:
                raise AssertionError(f"the longest delays: {figures}")
            lines = proxy.exchanges[-STREAMS:]
            ticking.client.close()
            ticking.peer.close()
    assert {line["grade"] for line in lines} == {"counted"}
    assert min(line["output_tokens"] for line in lines) > STREAM_BYTES / 50
