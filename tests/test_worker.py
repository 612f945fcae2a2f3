"""A stop loses nothing: readiness, notice, drain and last words of a real process, and its exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest

from proxy.sockets import listener
from proxy.worker import connection_limit
from tests.fakes import served
from tests.fakes.client import RecordingClient
from tests.fakes.raw_upstream import RawPeer, RawUpstream
from tests.fakes.running import KEY
from tests.fakes.waiting import until, until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.served import Served

CHAT: Final = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
REST: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def configuration(upstream: RawUpstream, notice: str, drain: str) -> dict[str, Any]:
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "upstreams": {"up": {"base_url": f"http://127.0.0.1:{upstream.port}/v1", "auth": "none"}},
        "keys": [{"id": "team-a", "secret": KEY}],
        "shutdown": {"notice": notice, "drain": drain},
    }


@contextlib.asynccontextmanager
async def proxied(folder: Path, *, notice: str, drain: str) -> AsyncIterator[tuple[Served, RawUpstream]]:
    with RawUpstream() as upstream:
        async with served.served(configuration(upstream, notice, drain), folder) as proxy:
            yield proxy, upstream


async def streaming(proxy: Served, upstream: RawUpstream) -> tuple[RecordingClient, RawPeer, Any]:
    """A stream whose first event the client has."""
    client = await RecordingClient.connect(proxy.port)
    client.send("POST", "/v1/chat/completions", CHAT)
    peer = await upstream.accept()
    await peer.answer(STREAM_HEAD + chunk(EVENT))
    answer = await client.head()
    await client.piece(answer)
    return client, peer, answer


async def ready_status(proxy: Served) -> int:
    client = await RecordingClient.connect(proxy.ops_port)
    try:
        return (await client.ask("GET", "/readyz", key=None)).status
    finally:
        await client.close()


async def is_refused(port: int) -> bool:
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            return False  # it was in the queue of a listener that closed: ask once more
    return False


def said(proxy: Served, event: str) -> bool:
    return any(line["event"] == event for line in proxy.lines)


async def test_a_drain_lets_streams_end_whole_and_tells_the_rest(tmp_path: Path) -> None:
    """SIGTERM: not ready at once, new connections served during the notice, refused after it; exit 0."""
    async with proxied(tmp_path, notice="400ms", drain="600ms") as (proxy, upstream):
        assert await ready_status(proxy) == 200
        ending, ending_peer, ended = await streaming(proxy, upstream)
        left, left_peer, cut = await streaming(proxy, upstream)
        waiting = await RecordingClient.connect(proxy.port)
        waiting.send("POST", "/v1/chat/completions", CHAT)
        waiting_peer = await upstream.accept()
        await waiting_peer.request()

        proxy.process.send_signal(signal.SIGTERM)
        await until(lambda: said(proxy, "draining"), "the drain to begin")
        assert await ready_status(proxy) == 503
        late, late_peer, served_late = await streaming(proxy, upstream)
        assert served_late.header("connection") == "close"
        await until_asked(lambda: is_refused(proxy.port), "listeners closed")

        for client, peer, answer in ((ending, ending_peer, ended), (late, late_peer, served_late)):
            await peer.send(chunk(REST) + b"0\r\n\r\n")
            while await client.piece(answer):
                continue
            assert (answer.body, answer.whole) == (EVENT + REST, True)

        while await left.piece(cut):
            continue
        assert cut.whole
        assert cut.body.startswith(EVENT + b'data: {"error":')
        assert b'"code":"draining"' in cut.body
        assert cut.body.endswith(b"data: [DONE]\n\n")
        refused = await waiting.answer()
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert refused.header("retry-after") is not None
        for peer in (left_peer, waiting_peer):
            await peer.ended()
        assert await proxy.exit_code() == 0
        for client in (ending, left, waiting, late):
            await client.close()
    drained = [line for line in proxy.exchanges if line.get("aborted_by") == "drain"]
    assert [line["outcome"] for line in drained] == ["draining", "draining"]
    assert {line["phase"] for line in drained} == {"relay", "forward"}
    assert len(proxy.exchanges) == 4


async def test_a_drain_ends_with_the_last_exchange(tmp_path: Path) -> None:
    """Nobody waits for a drain of ten minutes when nothing is left to drain."""
    async with proxied(tmp_path, notice="0s", drain="10m") as (proxy, upstream):
        client, peer, answer = await streaming(proxy, upstream)
        idle = await RecordingClient.connect(proxy.port)
        assert (await idle.ask("GET", "/v1/files")).status == 403  # its connection is kept alive, and does not count
        proxy.process.send_signal(signal.SIGTERM)
        await until_asked(lambda: is_refused(proxy.port), "listeners closed")
        await peer.send(chunk(REST) + b"0\r\n\r\n")
        while await client.piece(answer):
            continue
        assert answer.whole
        assert await proxy.exit_code() == 0
        await client.close()
        await idle.close()
    assert proxy.exchanges[-1]["outcome"] == "ok"


@pytest.mark.parametrize("notice", ["10m", "0s"])
async def test_a_second_sigterm_ends_notice_and_drain_at_once(tmp_path: Path, notice: str) -> None:
    """What is left still gets its error event, and the exit code is still 0."""
    async with proxied(tmp_path, notice=notice, drain="10m") as (proxy, upstream):
        client, peer, answer = await streaming(proxy, upstream)
        proxy.process.send_signal(signal.SIGTERM)
        await until(lambda: said(proxy, "draining"), "the drain to begin")
        proxy.process.send_signal(signal.SIGTERM)
        while await client.piece(answer):
            continue
        assert b'"code":"draining"' in answer.body
        await peer.ended()
        assert await proxy.exit_code() == 0
        await client.close()
    assert b"Traceback" not in proxy.err


async def test_sigint_skips_the_notice(tmp_path: Path) -> None:
    """Ctrl-C: no new connection is taken, and without a stream the process is gone at once."""
    async with proxied(tmp_path, notice="10m", drain="10m") as (proxy, _):
        proxy.process.send_signal(signal.SIGINT)
        assert await proxy.exit_code() == 0
    assert b"Traceback" not in proxy.err


async def test_a_client_that_does_not_read_cannot_hold_the_stop(tmp_path: Path) -> None:
    """The last words have two seconds; then the connection is dropped, and the upstream with it."""
    async with proxied(tmp_path, notice="0s", drain="0s") as (proxy, upstream):
        client = await RecordingClient.connect(proxy.port, receive_buffer=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio types it as WriteTransport
        client.send("POST", "/v1/chat/completions", CHAT)
        peer = await upstream.accept()
        await peer.answer(STREAM_HEAD)
        loop = asyncio.get_running_loop()
        flooding = loop.create_task(flood_until_stuck(peer))
        await flooding
        proxy.process.send_signal(signal.SIGTERM)
        await peer.ended()
        assert await proxy.exit_code() == 0
        await client.close()
    [line] = proxy.exchanges
    assert (line["aborted_by"], line["outcome"], line["phase"]) == ("drain", "draining", "relay")


async def flood_until_stuck(peer: RawPeer) -> None:
    """Send until the proxy takes no more for a moment."""
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.3):
                await peer.send(chunk(EVENT * 500))


async def test_a_port_in_use_is_one_clear_line_and_exit_1(tmp_path: Path) -> None:
    with RawUpstream() as upstream, listener("127.0.0.1", 0, "server") as taken:
        port = taken.getsockname()[1]
        config = configuration(upstream, "0s", "0s")
        config["server"]["port"] = port
        proxy = await served.start(config, tmp_path)
        assert await proxy.exit_code() == 1
    lines = proxy.err.decode().splitlines()
    assert lines == [f"sluice: cannot listen on 127.0.0.1:{port} (server.host, server.port): Address already in use"]


def test_a_listener_names_the_address_it_cannot_have() -> None:
    with listener("127.0.0.1", 0, "server") as taken:
        port = taken.getsockname()[1]
        expected = rf"cannot listen on 127.0.0.1:{port} \(server.host, server.port\): Address already in use"
        with pytest.raises(OSError, match=expected):
            listener("127.0.0.1", port, "server")


def test_a_listener_takes_ipv6() -> None:
    with listener("::1", 0, "server") as listening:
        assert listening.family == socket.AF_INET6


class _Warnings:
    def __init__(self) -> None:
        self.said: list[dict[str, object]] = []

    def warning(self, event: str, **fields: object) -> None:
        self.said.append({"event": event, **fields})


def test_connections_are_limited_to_what_the_descriptors_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exchange takes two descriptors: a limit that cannot be had is lowered, and said."""
    log: Any = _Warnings()
    limits = [1024, 2200]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda which, wanted: limits.__setitem__(0, wanted[0]))
    assert connection_limit(900, log) == 900
    assert limits[0] == 2000
    assert log.said == []
    assert connection_limit(9000, log) == 1000
    assert [line["allowed"] for line in log.said] == [1000]


async def test_the_first_request_finds_the_memory_it_counts_in(tmp_path: Path) -> None:
    """What the tokenizer works in belongs to the thread that counts first: 16 MiB, had another loaded the tables."""
    with RawUpstream() as upstream:
        config = configuration(upstream, notice="0s", drain="0s") | {"models": {"m": {"encoding": "o200k_base"}}}
        async with served.served(config, tmp_path) as proxy:
            process = psutil.Process(proxy.pid)
            before_bytes = process.memory_info().rss
            client, _, _ = await streaming(proxy, upstream)
            assert process.memory_info().rss - before_bytes < 8 * 2**20
            await client.close()
