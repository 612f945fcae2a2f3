"""Promise 4: a stream holds at most 256 KiB in user space, whatever the upstream sends and however slowly it is read.

A proxy in a process of its own gets upstreams that push 64 MiB each into clients that read nothing. The streams of one
kind are opened all at once and stay open, so that no kind lives on memory another one has given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest

from tests.fakes.line import chunk
from tests.fakes.raw_client import RawClient
from tests.fakes.raw_upstream import RawPeer, RawUpstream
from tests.fakes.running import KEY, running
from tests.fakes.served import Served, served
from tests.fakes.waiting import until, until_settled

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.scenarios.conftest import Certificates

LIMIT_BYTES: Final = 256 * 1024
FLOOD_BYTES: Final = 64 * 1024 * 1024
STREAMS: Final = 4
BATCHES: Final = 2  # the allocator grows in steps: the better of two counts
WARM_UP_STREAMS: Final = 2  # imports, pools and buffers that all streams share
QUIET_S: Final = 0.1

SSE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 960 + b'"}}]}\n\n'


@dataclass(frozen=True)
class Flood:
    """What an upstream answers with: a head, how its body begins, and what it then repeats."""

    head: bytes
    begin: bytes
    repeat: bytes
    path: str = "/v1/chat/completions"


# small enough to pass without being looked at (core/alike.py)
ALIKE: Final = chunk(EVENT.replace(b"x" * 960, b"x" * 480)) * 128

FLOODS: Final = {
    "events": Flood(SSE_HEAD, b"", EVENT * 64),
    "events that are alike": Flood(SSE_HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", b"", ALIKE),
    "tiny events": Flood(SSE_HEAD, b"", b"data: {}\n\n: ping\n\n" * 3600),
    "one line": Flood(SSE_HEAD, b"data: ", b"x" * 65536),
    "bytes": Flood(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD_BYTES, b"", bytes(65536), "/v1/audio/speech"
    ),
}
FIGURES: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the figures when all is done."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nmemory of a stuck stream, and what its upstream could push\n" + "\n".join(FIGURES))


@dataclass
class Pushing:
    """The upstream's side of a flood. `pushed_bytes` are what its kernel took."""

    wire: str
    upstream: RawUpstream
    pushed_bytes: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def push(self, flood: Flood) -> None:
        """Answer the next request with a flood, in a task of its own."""
        peer = await self.upstream.accept()
        # what the kernel takes is not the proxy's, and takes time to fill
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await peer.answer(flood.head + flood.begin)
        self.tasks.append(asyncio.get_running_loop().create_task(self._push(peer, flood)))

    async def _push(self, peer: RawPeer, flood: Flood) -> None:
        left = FLOOD_BYTES
        with contextlib.suppress(OSError):  # the proxy is killed in the end
            while left > 0:
                await peer.send(flood.repeat[:left])
                left -= len(flood.repeat)
                self.pushed_bytes += len(flood.repeat)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def configuration(upstreams: dict[str, RawUpstream], certificates: Certificates, client_wire: str) -> dict[str, Any]:
    tls = {"certificate": certificates.certificate_file, "private_key": certificates.key_file}
    return {
        "server": {"port": 0, "tls": tls if client_wire == "tls" else {}, "write_stall": "10m"},
        "ops": {"port": 0},
        "upstreams": {
            wire: {
                "base_url": f"{'https' if wire == 'tls' else 'http'}://127.0.0.1:{upstream.port}/v1",
                "auth": "none",
                "tls": {"ca": certificates.ca_file},
            }
            for wire, upstream in upstreams.items()
        },
        "models": {wire: {"routes": [{"upstream": wire}]} for wire in upstreams},
        "keys": [{"id": "team-a", "secret": KEY}],
    }


@contextlib.asynccontextmanager
async def proxied(
    client_wire: str, loop: str, certificates: Certificates, folder: Path
) -> AsyncIterator[tuple[Served, list[Pushing]]]:
    with RawUpstream() as plain, RawUpstream(certificates.server) as secure:
        upstreams = {"tcp": plain, "tls": secure}
        async with served(configuration(upstreams, certificates, client_wire), folder, loop) as proxy:
            pushing = [Pushing(wire, upstream) for wire, upstream in upstreams.items()]
            try:
                yield proxy, pushing
            finally:
                for each in pushing:
                    await each.stop()


@dataclass
class Clients:
    """Clients that ask and then read nothing; closed at the end."""

    port: int
    tls: ssl.SSLContext | None
    all: list[RawClient] = field(default_factory=list)

    async def ask(self, pushing: Pushing, flood: Flood, count: int) -> None:
        """Open `count` streams; back when nothing moves any more."""
        for _ in range(count):
            client = await RawClient.connect(self.port, self.tls, receive_buffer_bytes=8192)
            self.all.append(client)
            await client.post(flood.path, {"model": pushing.wire, "stream": True}, "Content-Type: application/json")
            await pushing.push(flood)
        await until_settled(lambda: pushing.pushed_bytes, QUIET_S)

    def close(self) -> None:
        for client in self.all:
            client.close()


def held_bytes(proxy: Served) -> int:
    return int(psutil.Process(proxy.pid).memory_info().rss)


@pytest.mark.parametrize(
    ("loop", "client_wire", "kinds"),
    [
        ("uvloop", "tcp", ("events", "events that are alike", "tiny events", "one line", "bytes")),
        ("uvloop", "tls", ("events", "events that are alike")),
        ("asyncio", "tcp", ("events",)),
        ("asyncio", "tls", ("events",)),
    ],
)
async def test_a_stuck_stream_holds_at_most_256_kib(
    loop: str, client_wire: str, kinds: tuple[str, ...], certificates: Certificates, tmp_path: Path
) -> None:
    """Whatever the flood, over TCP and TLS on either side."""
    context = certificates.client if client_wire == "tls" else None
    async with proxied(client_wire, loop, certificates, tmp_path) as (proxy, pushings):
        over: list[str] = []
        with contextlib.closing(Clients(proxy.port, context)) as clients:
            for pushing in pushings:
                await clients.ask(pushing, FLOODS["events"], WARM_UP_STREAMS)
                for kind in kinds:
                    held, pushed = await measure(proxy, clients, pushing, FLOODS[kind])
                    if held > LIMIT_BYTES:  # the allocator's grain may be in it: what streams hold, they hold again
                        held, pushed = await measure(proxy, clients, pushing, FLOODS[kind])
                    FIGURES.append(
                        f"{loop:8} client {client_wire}, upstream {pushing.wire}, {kind:12}"
                        f"{held / 1024:8.0f} KiB held {pushed / 1024:8.0f} KiB pushed"
                    )
                    if held > LIMIT_BYTES or pushed > FLOOD_BYTES / 2:
                        over.append(FIGURES[-1])
            assert proxy.exchanges == [], "a stream ended that should have been stuck"
        await until(lambda: len(proxy.exchanges) == len(clients.all), "all exchanges over")
        assert {line["outcome"] for line in proxy.exchanges} == {"client_gone"}
        assert not over, "\n".join(over)


async def measure(proxy: Served, clients: Clients, pushing: Pushing, flood: Flood) -> tuple[float, float]:
    """Bytes that one more stuck stream makes the proxy hold, and those its upstream got rid of."""
    figures = []
    for _ in range(BATCHES):
        held, pushed = held_bytes(proxy), pushing.pushed_bytes
        await clients.ask(pushing, flood, STREAMS)
        figures.append(((held_bytes(proxy) - held) / STREAMS, (pushing.pushed_bytes - pushed) / STREAMS))
    return min(figures)


async def test_a_flood_of_header_lines_is_refused() -> None:
    """A head has a bound, too: the client gets 502, the upstream is aborted, and what was read is let go."""
    line = b"x-filler: " + b"y" * 1000 + b"\r\n"
    with RawUpstream() as upstream:
        async with running(f"http://127.0.0.1:{upstream.port}/v1") as proxy:
            with contextlib.closing(await RawClient.connect(proxy.port)) as client:
                await client.post("/v1/chat/completions", {"model": "m"}, "Content-Type: application/json")
                peer = await upstream.accept()
                await peer.answer(b"HTTP/1.1 200 OK\r\n")
                sent = 0
                with contextlib.suppress(OSError):  # the end of it, which is what is wanted
                    while sent < FLOOD_BYTES:
                        await peer.send(line * 64)
                        sent += len(line) * 64
                assert sent < FLOOD_BYTES
                answer = await client.recv_until(b"upstream_protocol_error")
                assert answer.startswith(b"HTTP/1.1 502 ")
                assert proxy.worker.app.upstreams["up"].pool.open == 0
