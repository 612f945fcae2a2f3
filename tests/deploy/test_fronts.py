"""The examples of balancers before Sluice: each is tried, running, with a stream through it and a replica that goes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import ModelConfig
from proxy.config.upstreams import RouteConfig
from tests.deploy.fronts import NAMES, checking, front, written
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.line import CHAT_REQUEST, JSON_TYPE, LAST_CHUNK, PATIENCE_S, chunk, head
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import running, upstream_config
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.deploy.fronts import Front
    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.running import Running

every_front = pytest.mark.parametrize("name", NAMES)

CLIENT = "203.0.113.7"
FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"0"}}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
EVENTS = 20


def ports(proxy: Running) -> tuple[int, int]:
    return proxy.port, proxy.ops_port


@contextlib.asynccontextmanager
async def caller(entry: Front) -> AsyncIterator[RecordingClient]:
    client = await RecordingClient.connect(entry.port, tls=entry.tls)
    try:
        yield client
    finally:
        await client.close()


async def begun(client: RecordingClient, upstream: RawUpstream) -> RawPeer:
    """A stream that stands behind its first event, at both ends."""
    client.send("POST", "/v1/chat/completions", CHAT_REQUEST, headers=(JSON_TYPE, ("X-Forwarded-For", CLIENT)))
    peer = await asyncio.wait_for(upstream.accept(), PATIENCE_S)
    await asyncio.wait_for(peer.request(), PATIENCE_S)
    await peer.send(head() + chunk(FIRST))
    return peer


async def received(client: RecordingClient, answer: Any, size: int) -> bytes:
    """Read until `size` bytes of body are there in all: what was chunked anew may come in other pieces."""
    while len(answer.body) < size:
        assert await asyncio.wait_for(client.piece(answer), PATIENCE_S), "it ended early"
    return bytes(answer.body)


@every_front
def test_the_program_itself_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    file = written(name, tmp_path, 8443, [(8080, 9090)])
    checked = subprocess.run(checking(name, file), capture_output=True, text=True, timeout=LONG_S, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr
    assert "[warn]" not in checked.stderr


@every_front
def test_the_program_would_have_noticed(name: str, tmp_path: Path) -> None:
    file = written(name, tmp_path, 8443, [(8080, 9090)])
    file.write_text(file.read_text() + "\nno_such_setting: {}\n")
    assert subprocess.run(checking(name, file), capture_output=True, timeout=LONG_S, check=False).returncode != 0


@every_front
async def test_each_event_passes_at_once_and_an_abort_reaches_the_upstream(name: str, tmp_path: Path) -> None:
    with RawUpstream() as upstream:
        config = upstream_config(f"http://127.0.0.1:{upstream.port}/v1", usage="as-asked")
        server = {"trusted_proxies": ("0.0.0.0/1", "128.0.0.0/1")}  # Envoy writes what it takes for its own address
        async with (
            running({"up": config}, server=server) as proxy,
            front(name, tmp_path, [ports(proxy)]) as entry,
            caller(entry) as client,
        ):
            peer = await begun(client, upstream)
            answer = await asyncio.wait_for(client.head(), PATIENCE_S)
            assert (answer.status, answer.header("content-encoding")) == (200, None)
            sent = FIRST
            for _ in range(EVENTS):  # each is sent when the one before has arrived: nothing is gathered on the way
                assert await received(client, answer, len(sent)) == sent
                await peer.send(chunk(FIRST))
                sent += FIRST
            assert await received(client, answer, len(sent)) == sent
            await client.reset()
            await asyncio.wait_for(peer.ended(), PATIENCE_S)
            line = await proxy.exchange()
            assert line["outcome"] == "client_gone"
            assert line["client"] == CLIENT


@every_front
async def test_a_replica_is_replaced_without_an_error(name: str, tmp_path: Path) -> None:
    """One of two replicas stops at once: what it refuses goes to the other, and its stream ends as it should."""
    async with contextlib.AsyncExitStack() as stack:
        raw = stack.enter_context(RawUpstream())
        replicas = [await replica(stack, raw) for _ in range(2)]
        entry = await stack.enter_async_context(front(name, tmp_path, [ports(proxy) for proxy, _ in replicas]))
        client = await stack.enter_async_context(caller(entry))
        peer = await begun(client, raw)
        answer = await asyncio.wait_for(client.head(), PATIENCE_S)
        assert await received(client, answer, len(FIRST)) == FIRST
        (going, _), (_, staying) = sorted(replicas, key=lambda one: -len(one[0].worker.app.live))

        stopping = asyncio.create_task(going.worker.stop(PATIENCE_S))
        assert await share(staying, entry, 20) == 20
        assert not stopping.done(), "it waits for its stream"
        await peer.send(chunk(LAST) + LAST_CHUNK)
        assert await received(client, answer, len(FIRST + LAST)) == FIRST + LAST
        await asyncio.wait_for(stopping, PATIENCE_S)
        assert await share(staying, entry, 5) == 5


@pytest.mark.parametrize("name", ["envoy", "haproxy"])
async def test_a_replica_that_drains_gets_nothing_new(name: str, tmp_path: Path) -> None:
    """By their health, which nginx asks nobody for: it passes on what is refused."""
    async with contextlib.AsyncExitStack() as stack:
        raw = stack.enter_context(RawUpstream())
        (going, first), (staying, second) = [await replica(stack, raw) for _ in range(2)]
        backends = [ports(going), ports(staying)]
        entry = await stack.enter_async_context(front(name, tmp_path, backends))
        async with asyncio.timeout(2 * PATIENCE_S):
            while await share(first, entry, 4) == 0:  # both are in use
                continue
            going.worker.app.drain()
            while await share(second, entry, 12) < 12:  # by chance once in 4,096 times
                continue


async def replica(stack: contextlib.AsyncExitStack, raw: RawUpstream) -> tuple[Running, AnsweringUpstream]:
    """A proxy that streams from `raw`, and has the model `quick` from an upstream that is its own."""
    quick = await stack.enter_async_context(AnsweringUpstream())
    streams = upstream_config(f"http://127.0.0.1:{raw.port}/v1", usage="as-asked")
    models = {
        "quick": ModelConfig(routes=(RouteConfig(upstream="quick"),)),
        "*": ModelConfig(routes=(RouteConfig(upstream="raw"),)),
    }
    upstreams = {"raw": streams, "quick": upstream_config(quick.url)}
    return await stack.enter_async_context(running(upstreams, models=models)), quick


async def share(upstream: AnsweringUpstream, entry: Front, count: int) -> int:
    """Ask `count` times, each on a connection of its own, all answered; how many came to this upstream."""
    before = len(upstream.requests)
    question = {"model": "quick", "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(count):
        async with caller(entry) as client:
            answer = await asyncio.wait_for(client.ask("POST", "/v1/chat/completions", question), PATIENCE_S)
            assert answer.status == 200, answer.body
    return len(upstream.requests) - before
