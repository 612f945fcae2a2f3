"""Cancelled at whichever await, an exchange holds nothing any more and leaves exactly one record.

The pipeline runs in a real proxy, between real sockets. Its task is cancelled as it suspends for the k-th time, for
k = 1, 2, … until the exchange ends before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.upstreams import UpstreamTlsConfig
from tests.fakes.cancelled import CancelledAt
from tests.fakes.raw_client import RawClient
from tests.fakes.raw_upstream import RawPeer, RawUpstream
from tests.fakes.running import Running, running, upstream_config
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from proxy.core.errors import ProxyError
    from proxy.phases.exchange import Exchange
    from tests.scenarios.conftest import Certificates

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 1000 + b'"}}]}\n\n'
LAST: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
ERROR: Final = b'{"error":{"message":"slow down","type":"requests","param":null,"code":null}}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Case:
    """What the client sends, how the upstream answers, and the phases that surely wait for one of them."""

    path: str
    headers: tuple[str, ...]
    pieces: tuple[bytes, ...] = field(repr=False)
    answer: Callable[[RawPeer], Coroutine[Any, Any, None]]
    phases: frozenset[str]


async def turns() -> None:
    """Let everybody do what can be done with what was sent so far."""
    for _ in range(20):
        await asyncio.sleep(0)


async def answer_events(peer: RawPeer) -> None:
    """More than the client's buffers hold, so that the relay waits for the client as well."""
    await peer.send(STREAM_HEAD)
    for _ in range(6):
        await peer.send(chunk(EVENT * 100))
        await turns()
    await peer.send(chunk(LAST) + b"0\r\n\r\n")


async def answer_json(peer: RawPeer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{")
    await turns()
    await peer.send(b"}")


async def answer_error(peer: RawPeer) -> None:
    await peer.send(b"HTTP/1.1 429 Slow down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(ERROR))
    await turns()
    await peer.send(ERROR)


async def answer_half(peer: RawPeer) -> None:
    await peer.send(STREAM_HEAD + chunk(EVENT) + chunk(EVENT[:40]))
    peer.sock.shutdown(socket.SHUT_WR)


JSON: Final = "Content-Type: application/json"
CHAT: Final = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%b"}]}'
UPLOAD: Final = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
    + bytes(100_000)
    + b"\r\n--b--\r\n"
)
ALL: Final = frozenset({"admit", "forward", "relay"})
CASES: Final = {
    "stream": Case("/v1/chat/completions", (JSON,), (CHAT[:20], CHAT[20:]), answer_events, ALL),
    # parsed in a thread, sent piecewise
    "long body": Case("/v1/chat/completions", (JSON,), (CHAT % (b"x" * 1_200_000),), answer_events, ALL),
    "upload": Case(
        "/v1/audio/transcriptions",
        ("Content-Type: multipart/form-data; boundary=b",),
        (UPLOAD[:60], UPLOAD[60:9000], UPLOAD[9000:]),
        answer_json,
        frozenset({"forward"}),
    ),
    "error": Case("/v1/embeddings", (JSON,), (b'{"model":"m","input":"a"}',), answer_error, frozenset({"forward"})),
    "truncated": Case("/v1/chat/completions", (JSON,), (CHAT,), answer_half, frozenset({"forward"})),
    "refused": Case("/v1/files", (JSON,), (b"{}",), answer_json, frozenset()),
}


@contextlib.asynccontextmanager
async def proxied(
    case: Case, certificates: Certificates, *, secure: bool
) -> AsyncIterator[tuple[Running, RawUpstream]]:
    with RawUpstream(certificates.server if secure else None) as upstream:
        config = upstream_config(
            f"{'https' if secure else 'http'}://127.0.0.1:{upstream.port}/v1",
            tls=UpstreamTlsConfig(ca=certificates.ca_file),
        )
        serving = asyncio.get_running_loop().create_task(serve(upstream, case))
        try:
            async with running({"up": config}) as proxy:
                yield proxy, upstream
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def serve(upstream: RawUpstream, case: Case) -> None:
    """Answer every request as the case has it, whoever breaks off; returns when cancelled."""
    while True:
        peer = await upstream.accept_raw()
        with contextlib.suppress(OSError):  # it broke off, which is what is tested
            if peer.tls is not None:
                await peer.handshake()
            await peer.request()
            await case.answer(peer)
            await peer.ended()
        peer.close()


async def send(client: RawClient, case: Case) -> None:
    """The request in its pieces, each in a turn of its own; the answer is then read to the end of the connection."""
    with contextlib.suppress(OSError):
        await client.begin(case.path, *case.headers, f"Content-Length: {sum(map(len, case.pieces))}")
        for piece in case.pieces:
            await client.send(piece)
            await turns()
        await client.recv_until(b"\r\n\r\n")
        await client.ended()


async def cancelled_at(which: int, proxy: Running, case: Case, monkeypatch: pytest.MonkeyPatch) -> bool:
    """One exchange, cancelled at that suspension. Returns whether it came so far."""
    pipeline = proxy.worker.app.pipeline
    original = pipeline.run
    ended = asyncio.Event()
    cancellations: list[CancelledAt] = []

    async def run(exchange: Exchange, task: asyncio.Task[object], refusal: ProxyError | None = None) -> None:
        cancellations.append(CancelledAt(original(exchange, task, refusal), which))
        try:
            await cancellations[0]
        finally:
            ended.set()

    monkeypatch.setattr(pipeline, "run", run)
    client = await RawClient.connect(proxy.port, receive_buffer_bytes=8192)
    sending = asyncio.get_running_loop().create_task(send(client, case))
    await ended.wait()
    monkeypatch.setattr(pipeline, "run", original)
    sending.cancel()
    await asyncio.wait({sending})
    client.close()
    return cancellations[0].suspensions >= which


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("name", CASES)
async def test_at_every_await(
    name: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, *, secure: bool
) -> None:
    """Nothing held, one record, one line, the upstream let go."""
    case = CASES[name]
    async with proxied(case, certificates, secure=secure) as (proxy, upstream):
        app = proxy.worker.app
        before = asyncio.all_tasks()
        which, reached = 0, True
        while reached:
            which += 1
            reached = await cancelled_at(which, proxy, case, monkeypatch)
            await until(lambda: len(app.live) == 0, "it is settled")
            assert proxy.total("sluice_exchanges_in_flight") == 0
            assert proxy.total("sluice_requests_total") == which
            assert app.upstreams["up"].pool.open == 0
            await until(lambda: all(peer.sock.fileno() < 0 for peer in upstream.peers), "the upstream saw the end")
            await until(lambda: not (asyncio.all_tasks() - before), "no task left")
            await until(lambda: len(app.tasks) == 0, "nothing is being settled")
        await proxy.exchange(which)
        assert len(proxy.exchanges) == which
        cancelled = [line for line in proxy.exchanges if "aborted_by" in line]
        assert len(cancelled) >= which - 2  # the last exchange ended by itself, and one may have been done for already
        assert {line["aborted_by"] for line in cancelled} <= {"client"}
        assert case.phases <= {line["phase"] for line in cancelled}
