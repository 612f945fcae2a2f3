"""What is measured of a server: CPU of a unit of work, added time to the first byte, memory of a stream, start."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.bench.contenders import CORES, started
from tests.bench.load import Caller, Work, drive, payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.bench.contenders import Contender, Server

SILENT: Final = payload("mock-silent", stream=True)
FLOOD: Final = payload("mock-flood", stream=True)
WARM_UP_STREAMS: Final = 20
BEGUN_S: Final = 30.0
QUIET_S: Final = 0.5
LOOK_S: Final = 0.05
FIRST_ANSWER: Final = Work("mock-1-0", 1, 1)
STREAM_OF_ONE: Final = Work("mock-1-0", 1, 1, events=1)


@dataclass(frozen=True)
class CpuWork:
    """A load whose CPU is measured, for each `unit` of it."""

    name: str
    unit: str
    work: Work
    is_by_event: bool = False

    def units(self) -> int:
        """How many units it has."""
        return self.work.requests * (self.work.events if self.is_by_event else 1)


def cpu_works(scale: float) -> list[CpuWork]:
    """The loads: a paced stream's events, short streams, requests."""

    def times(count: int) -> int:
        return max(int(count * scale), 20)

    paced = Work("mock-200-10000", 100, 100, events=times(200))
    paced = Work(f"mock-{paced.events}-10000", paced.requests, paced.at_once, paced.events)
    return [
        CpuWork("event of a paced stream", "µs", paced, is_by_event=True),
        CpuWork("stream of 10 events", "µs", Work("mock-10-0", times(3000), 50, events=10)),
        CpuWork("request without a stream", "µs", Work("mock-1-0", times(6000), 50)),
    ]


async def cpu_us(server: Server, cpu_work: CpuWork) -> float:
    """Microseconds of the server's CPU for one unit."""
    before_s = server.cpu_s()
    await drive(server.port, cpu_work.work)
    return (server.cpu_s() - before_s) * 1e6 / cpu_work.units()


async def first_byte_ms(ports: dict[str, int], count: int) -> dict[str, list[float]]:
    """Milliseconds to the first byte of `count` streams by each way, one at a time and in turns."""
    callers = {name: await Caller.connect(port) for name, port in ports.items()}
    request = payload(STREAM_OF_ONE.wish, stream=True)
    seen: dict[str, list[float]] = {name: [] for name in ports}
    gc.disable()
    try:
        for turn in range(count + count // 10):
            for name, caller in callers.items():
                answer = await caller.ask(request)
                STREAM_OF_ONE.check(answer)
                if turn >= count // 10:
                    seen[name].append(answer.first_byte_s * 1000)
    finally:
        gc.enable()
        for caller in callers.values():
            caller.close()
    return seen


def added(seen: dict[str, list[float]], name: str) -> tuple[float, float]:
    """Median and 99th percentile of what a way adds to those of the direct one."""
    ways = [statistics.quantiles(seen[way], n=100, method="inclusive") for way in (name, "direct")]
    return ways[0][49] - ways[1][49], ways[0][98] - ways[1][98]


async def stream_kib(server: Server, silent: int, stuck: int) -> tuple[float, float]:
    """KiB of memory for one more stream: a silent one, which sent an event and nothing since, and a stuck one.

    Of a stuck one the upstream has much and the client reads nothing. All stay open to the end, so that none lives on
    memory that another has given back.
    """
    async with streams(server.port, SILENT, WARM_UP_STREAMS), streams(server.port, FLOOD, WARM_UP_STREAMS, reads=False):
        await settled(server)
        before = server.rss_bytes()
        async with streams(server.port, SILENT, silent):
            between = server.rss_bytes()
            async with streams(server.port, FLOOD, stuck, reads=False):
                await settled(server)
                after = server.rss_bytes()
    return (between - before) / silent / 1024, (after - between) / stuck / 1024


@contextlib.asynccontextmanager
async def streams(port: int, request: bytes, count: int, *, reads: bool = True) -> AsyncIterator[None]:
    """Hold so many streams open, all of which have begun where their clients read."""
    loop = asyncio.get_running_loop()
    socks = []
    try:
        for _ in range(count):
            sock = socket.socket()
            socks.append(sock)
            sock.setblocking(False)
            if not reads:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, request)
        if reads:
            async with asyncio.timeout(BEGUN_S):
                for sock in socks:
                    await _event(loop, sock)
        yield
    finally:
        for sock in socks:
            sock.close()


async def _event(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    seen = b""
    while b"\n\n\r\n" not in seen and b'"choices"' not in seen:
        data = await loop.sock_recv(sock, 65536)
        if not data:
            raise ConnectionError(f"a stream ended: {seen!r}")
        seen += data


async def settled(server: Server) -> None:
    """Wait until the server does next to nothing any more: what it takes, it has taken."""
    since_s, used_s = time.monotonic(), server.cpu_s()
    while time.monotonic() - since_s < QUIET_S:
        await asyncio.sleep(LOOK_S)
        if (now_s := server.cpu_s()) > used_s + 0.02:
            since_s, used_s = time.monotonic(), now_s


async def start_s(contender: Contender, folder: Path) -> float:
    """Seconds from the start of the process to the first good answer."""
    with started(contender.command, contender.port, CORES[0], folder) as server:
        await answering(server)
        return time.perf_counter() - server.started_s


async def answering(server: Server) -> None:
    """Wait until it answers well: some listen before they know their upstreams."""
    async with asyncio.timeout(BEGUN_S):
        while True:
            caller = await Caller.connect(server.port)
            answer = await caller.ask(payload(FIRST_ANSWER.wish, stream=False))
            caller.close()
            if answer.status == 200 and answer.is_whole:
                return
            await asyncio.sleep(LOOK_S / 10)
