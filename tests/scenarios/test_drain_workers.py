"""A stop under load: every stream that ends in time is whole, whichever worker relays it; uploads are finished, too."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Final

from proxy.simulator.server import Simulator
from tests.fakes.client import RecordingClient
from tests.fakes.fleet import fleet, readiness, scrape, total
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.fakes.served import Served

# 500 streams of 10 s in the full measure
STREAMS: Final = int(os.environ.get("SLUICE_TEST_DRAIN_STREAMS", "60"))
STREAM_S: Final = float(os.environ.get("SLUICE_TEST_DRAIN_STREAM_S", "2"))
EVENTS: Final = 10
QUICK: Final = {"model": "sim-fast", "messages": [{"role": "user", "content": "hi"}]}
DONE: Final = b"data: [DONE]\n\n"


class Opened:
    """A client whose stream has begun, or was refused."""

    def __init__(self, client: RecordingClient) -> None:
        self.client = client
        self.has_begun = asyncio.Event()

    @classmethod
    async def on(cls, proxy: Served) -> Opened:
        return cls(await RecordingClient.connect(proxy.port))

    async def stream(self) -> str:
        """Ask for a stream and read it to its end; what came of it."""
        model = f"sim-{EVENTS}t-{round(STREAM_S * 1000 / EVENTS)}ms"
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        self.client.send("POST", "/v1/chat/completions", body)
        try:
            answer = await self.client.head()
            if answer.status != 200:
                return f"status {answer.status}"
            await self.client.piece(answer)
            self.has_begun.set()
            while await self.client.piece(answer):
                continue
        except (asyncio.IncompleteReadError, ConnectionError):
            return "cut"
        finally:
            self.has_begun.set()
            await self.client.close()
        return "whole" if answer.body.endswith(DONE) and b'"error"' not in answer.body else "ended in an error"


async def test_a_stop_under_many_streams_cuts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = asyncio.get_running_loop()
    async with Simulating() as simulator, fleet(simulator.url, tmp_path) as proxy:
        opened = [await Opened.on(proxy) for _ in range(STREAMS)]
        streams = [loop.create_task(one.stream()) for one in opened]
        await asyncio.gather(*(one.has_begun.wait() for one in opened))
        live = sum(not stream.done() for stream in streams)
        began_s = loop.time()
        proxy.process.send_signal(signal.SIGTERM)
        outcomes = Counter(await asyncio.gather(*streams))
        drained_s = loop.time() - began_s
        assert await proxy.exit_code(LONG_S) == 0
    shares = Counter(line["worker"] for line in proxy.exchanges)
    with capsys.disabled():
        print(
            f"\n{STREAMS} streams of {STREAM_S:g} s, {live} live at SIGTERM: {dict(outcomes)} in {drained_s:.1f} s;",
            end=" ",
        )
        print(f"exit after {loop.time() - began_s:.1f} s; by worker: {dict(shares)}")
    assert live > 0
    assert outcomes == {"whole": STREAMS}
    assert {line["outcome"] for line in proxy.exchanges} == {"ok"}
    assert len(proxy.exchanges) == STREAMS


async def test_an_upload_in_flight_is_finished(tmp_path: Path) -> None:
    """Half a body has arrived at SIGTERM: the rest is taken, and the answer says that the connection closes."""
    answer = b'{"id":"x","object":"chat.completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"a" * 200_000 + b'"}]}'
    with RawUpstream() as upstream:
        async with fleet(f"http://127.0.0.1:{upstream.port}/v1", tmp_path) as proxy:
            async with await RecordingClient.connect(proxy.port) as client:
                client.send("POST", "/v1/chat/completions", headers=(("Content-Length", str(len(body))),))
                client.writer.write(body[:100_000])
                await until_in_flight(proxy)
                proxy.process.send_signal(signal.SIGTERM)
                await until(lambda: said(proxy, "draining") == 3, "supervisor and workers drain", LONG_S)
                client.writer.write(body[100_000:])
                peer = await upstream.accept()
                assert (await peer.request()).endswith(body)
                await peer.send(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )
                got = await client.answer()
                assert (got.status, got.body, got.whole) == (200, answer, True)
                assert got.header("connection") == "close"
            assert await proxy.exit_code(LONG_S) == 0


def said(proxy: Served, event: str) -> int:
    return sum(line["event"] == event for line in proxy.lines)


async def until_in_flight(proxy: Served) -> None:
    async def is_in_flight() -> bool:
        return total((await scrape(proxy))[1], "sluice_exchanges_in_flight") == 1

    await until_asked(is_in_flight, "the upload is seen")


async def test_during_the_notice_workers_accept_and_readiness_is_gone(tmp_path: Path) -> None:
    async with Simulating() as simulator, fleet(simulator.url, tmp_path, notice="10m") as proxy:
        assert await readiness(proxy) == (200, [])
        proxy.process.send_signal(signal.SIGTERM)
        await until(lambda: said(proxy, "draining") == 3, "supervisor and workers drain", LONG_S)
        assert await readiness(proxy) == (503, ["draining", "worker 1: draining", "worker 2: draining"])
        for _ in range(5):
            async with await RecordingClient.connect(proxy.port) as client:
                late = await client.ask("POST", "/v1/chat/completions", QUICK)
                assert (late.status, late.header("connection")) == (200, "close")
        proxy.process.send_signal(signal.SIGTERM)
        assert await proxy.exit_code(LONG_S) == 0


class Simulating:
    """A simulator while it is needed."""

    async def __aenter__(self) -> Simulator:
        self._simulator = Simulator()
        await self._simulator.start()
        return self._simulator

    async def __aexit__(self, *exc_info: object) -> None:
        await self._simulator.close()
