"""Promise 4, in time: a client that accepts nothing is cut after `write_stall`, one that reads slowly is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import pytest

from proxy.config.settings import ServerTlsConfig
from tests.fakes.raw_client import RawClient
from tests.fakes.raw_upstream import RawPeer, RawUpstream
from tests.fakes.running import Running, running
from tests.fakes.waiting import TIMER_S, until, until_settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.phases.exchange import Exchange
    from tests.scenarios.conftest import Certificates

pytestmark = [
    pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"]),
    pytest.mark.parametrize("wire", ["tcp", "tls"]),
]

STALL_S: Final = 0.6
LATE_S: Final = 20.0  # the watchdog looks four times within the limit; the rest is for a busy machine
CHAT: Final = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 480 + b'"}}]}\n\n'
LAST: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def streaming(wire: str, certificates: Certificates) -> AsyncIterator[tuple[Running, RawPeer, RawClient]]:
    """A stream whose client has read nothing so far and takes little at a time."""
    secure = wire == "tls"
    files = (certificates.certificate_file, certificates.key_file) if secure else (None, None)
    server = {"tls": ServerTlsConfig(certificate=files[0], private_key=files[1]), "write_stall": STALL_S}
    with RawUpstream() as upstream:
        async with running(f"http://127.0.0.1:{upstream.port}/v1", server=server) as proxy:
            client = await RawClient.connect(
                proxy.port, certificates.client if secure else None, receive_buffer_bytes=4096
            )
            with contextlib.closing(client):
                await client.post("/v1/chat/completions", CHAT, "Content-Type: application/json")
                peer = await upstream.accept()
                await peer.answer(STREAM_HEAD)
                yield proxy, peer, client


def exchange_of(proxy: Running) -> Exchange:
    [exchange] = proxy.worker.app.live._live
    return exchange


async def flood(peer: RawPeer) -> None:
    with contextlib.suppress(OSError):  # the proxy ends it
        while True:
            await peer.send(chunk(EVENT) * 16)  # as upstreams send them: each event in a chunk of its own


@contextlib.asynccontextmanager
async def meanwhile(peer: RawPeer) -> AsyncIterator[None]:
    """The upstream sends as much as it can."""
    flooding = asyncio.get_running_loop().create_task(flood(peer))
    try:
        yield
    finally:
        flooding.cancel()
        await asyncio.wait({flooding})


async def assert_cut(proxy: Running, client: RawClient) -> None:
    line = await proxy.exchange()
    assert (line["outcome"], line["aborted_by"], line["phase"]) == ("client_stalled", "write_stall", "relay")
    assert line["status"] == 499
    assert proxy.sample("sluice_aborts_total", phase="relay", by="write_stall") == 1
    assert proxy.worker.app.upstreams["up"].pool.open == 0
    received = b""
    with contextlib.suppress(OSError):
        while data := await client.recv_raw():
            received += data
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.usefixtures("relay_form")
async def test_a_client_that_accepts_nothing_is_cut(wire: str, certificates: Certificates) -> None:
    """And the upstream is aborted: not before `write_stall`, and not much later."""
    async with streaming(wire, certificates) as (proxy, peer, client), meanwhile(peer):
        since_s, exchange = time.perf_counter(), exchange_of(proxy)
        await until(lambda: exchange.downstream.backpressure[0], "a client that lets the proxy wait")
        await until(lambda: len(proxy.worker.app.live) == 0, "the cut")
        assert STALL_S - TIMER_S < time.perf_counter() - since_s < STALL_S + LATE_S
        await peer.ended()
        await assert_cut(proxy, client)


async def test_a_client_that_reads_slowly_but_steadily_is_not(wire: str, certificates: Certificates) -> None:
    """It gets 2 KiB every few milliseconds for twice `write_stall`, the proxy waiting for it all the time."""
    async with streaming(wire, certificates) as (proxy, peer, client), meanwhile(peer):
        await until(lambda: exchange_of(proxy).downstream.is_waiting, "a client that lets the proxy wait")
        waiting = [0, 0]
        until_s = time.perf_counter() + 2 * STALL_S
        while time.perf_counter() < until_s:
            assert await client.recv_some(2048)
            waiting[exchange_of(proxy).downstream.is_waiting] += 1
            await until_settled(lambda: 0, 0.004)
        assert waiting[True] > waiting[False]
        assert proxy.exchanges == []


@pytest.mark.usefixtures("relay_form")
async def test_a_client_that_leaves_a_finished_answer_unread_is_cut(wire: str, certificates: Certificates) -> None:
    """Everything the upstream had to say waits in the proxy's own buffers: still nobody may sit on it for ever."""
    async with streaming(wire, certificates) as (proxy, peer, client):
        exchange = exchange_of(proxy)
        transport = exchange.downstream._connection.transport  # type: ignore[attr-defined]  # the real one
        sent_bytes = 0
        while transport.get_write_buffer_size() == 0:
            await peer.send(chunk(EVENT * 8))
            sent_bytes += len(EVENT) * 8
            while exchange.downstream.sent_bytes < sent_bytes:  # at full speed: the client already makes no progress
                await asyncio.sleep(0)
        await peer.send(chunk(LAST) + b"0\r\n\r\n")
        await until(lambda: exchange.downstream.is_waiting, "the end of the answer to wait for the client")
        await until(lambda: len(proxy.worker.app.live) == 0, "the cut")
        await assert_cut(proxy, client)
