"""A worker that dies takes its own streams along and nobody else's; another takes its place; no counter falls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import Answer, RecordingClient
from tests.fakes.fleet import fallen, fleet, readiness, scrape, total, until_ready, worker_of
from tests.fakes.raw_upstream import RawPeer, RawUpstream
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.served import Served

CHAT: Final = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
WHOLE: Final = {"model": "m", "messages": []}
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
REST: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
# 30 in the full measure: in each a worker is killed, if there is one besides the one that is left alone
SECONDS: Final = int(os.environ.get("SLUICE_TEST_KILL_SECONDS", "4"))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Streams:
    """Streams whose upstream waits to be told, by the worker that relays them."""

    def __init__(self, proxy: Served, upstream: RawUpstream) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self.by_worker: dict[int, list[tuple[RecordingClient, RawPeer, Answer]]] = {}

    async def begin(self) -> None:
        client = await RecordingClient.connect(self._proxy.port)
        client.send("POST", "/v1/chat/completions", CHAT)
        peer = await self._upstream.accept()
        await peer.answer(STREAM_HEAD + chunk(EVENT))
        answer = await client.head()
        await client.piece(answer)
        self.by_worker.setdefault(worker_of(self._proxy, client), []).append((client, peer, answer))

    async def finish(self, pid: int) -> None:
        """Let those of a worker end: each is whole."""
        for client, peer, answer in self.by_worker.pop(pid):
            await peer.send(chunk(REST) + b"0\r\n\r\n")
            while await client.piece(answer):
                continue
            assert (answer.body, answer.whole) == (EVENT + REST, True)
            await client.close()


async def ask(proxy: Served) -> Answer:
    async with await RecordingClient.connect(proxy.port) as client:
        return await client.ask("POST", "/v1/chat/completions", WHOLE)


async def test_only_the_streams_of_the_killed_worker_are_cut(tmp_path: Path) -> None:
    with RawUpstream() as upstream:
        async with fleet(f"http://127.0.0.1:{upstream.port}/v1", tmp_path) as proxy:
            streams = Streams(proxy, upstream)
            for _ in range(100):
                await streams.begin()
                if len(streams.by_worker) == 2:
                    break
            one, other = streams.by_worker
            before, _ = await scrape(proxy)
            proxy.workers[one].kill()
            for client, peer, answer in streams.by_worker.pop(one):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await client.piece(answer)
                assert answer.body == EVENT  # nothing was made up
                await peer.ended()
                await client.close()
            await until(lambda: len(proxy.workers) == 2 and one not in proxy.workers, "another worker", LONG_S)
            await until_ready(proxy)
            await streams.finish(other)
            after, gauges = await scrape(proxy)
            assert fallen(before, after) == {}
            assert total(after, "sluice_worker_deaths_total") == 1
            assert total(gauges, "sluice_workers") == 2
    [died] = [line for line in proxy.lines if line["event"] == "worker died"]
    assert (died["level"], died["how"]) == ("warning", f"worker {died['worker']} ended: SIGKILL")


async def until_counted(proxy: Served, name: str, least: float) -> None:
    async def is_counted() -> bool:
        return total((await scrape(proxy))[0], name) >= least

    await until_asked(is_counted, f"{name} {least:g}", LONG_S)


async def test_what_a_dead_worker_counted_stays(tmp_path: Path) -> None:
    """Both workers count; each is killed in turn; the sum is as before, and goes on from there."""
    async with AnsweringUpstream() as upstream, fleet(upstream.url, tmp_path) as proxy:
        for _ in range(40):
            assert (await ask(proxy)).status == 200
        await until_counted(proxy, "sluice_requests_total", 40)
        assert {line["worker"] for line in proxy.exchanges} <= {1, 2}
        for pid in list(proxy.workers):
            before, _ = await scrape(proxy)
            proxy.workers[pid].kill()
            await until(lambda pid=pid: len(proxy.workers) == 2 and pid not in proxy.workers, "another", LONG_S)  # type: ignore[misc]
            await until_ready(proxy)
            after, gauges = await scrape(proxy)
            assert fallen(before, after) == {}
            assert total(after, "sluice_requests_total") == 40
            assert total(gauges, "sluice_build_info") == 1
        for _ in range(5):
            assert (await ask(proxy)).status == 200
        await until_counted(proxy, "sluice_requests_total", 45)


async def test_a_worker_that_is_told_to_end_loses_no_count_and_no_stream(tmp_path: Path) -> None:
    """SIGTERM to a worker alone: it drains, tells what it counted, and another takes its place."""
    with RawUpstream() as upstream:
        async with fleet(f"http://127.0.0.1:{upstream.port}/v1", tmp_path) as proxy:
            streams = Streams(proxy, upstream)
            await streams.begin()
            [pid] = streams.by_worker
            for _ in range(2):  # a second one from elsewhere is no reason to hurry
                proxy.workers[pid].send_signal(signal.SIGTERM)
            await until(lambda: any(line["event"] == "draining" for line in proxy.lines), "the drain")
            await streams.finish(pid)
            await until(lambda: len(proxy.workers) == 2 and pid not in proxy.workers, "another worker", LONG_S)
            await until_counted(proxy, "sluice_requests_total", 1)
            rising, _ = await scrape(proxy)
    assert total(rising, "sluice_requests_total") == 1
    assert proxy.exchanges[0]["outcome"] == "ok"


async def load(proxy: Served, asked: dict[str, int], over: asyncio.Event) -> None:
    """Ask again and again, each time on a new connection, which any worker may accept."""
    while not over.is_set():
        came = "cut"
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            answer = await ask(proxy)
            came = str(answer.status) if answer.whole else "cut"
        asked[came] = asked.get(came, 0) + 1


@pytest.mark.timeout(180 + 10 * SECONDS)
async def test_a_worker_killed_every_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients see an answer or an honest cut, nothing else; no scrape shows less than the one before."""
    asked = {"200": 0, "cut": 0}
    async with AnsweringUpstream() as upstream, fleet(upstream.url, tmp_path, workers=3) as proxy:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        clients = [loop.create_task(load(proxy, asked, over)) for _ in range(8)]
        before, _ = await scrape(proxy)
        steady, *_ = proxy.workers  # the others' pauses grow: without it nobody might be there for a while
        scrapes = kills = 0
        for _ in range(SECONDS):
            deadline_s = loop.time() + 1.0
            for victim in [worker for pid, worker in proxy.workers.items() if pid != steady][:1]:
                victim.kill()
                kills += 1
            while loop.time() < deadline_s:
                after, _ = await scrape(proxy)
                assert fallen(before, after) == {}
                before, scrapes = after, scrapes + 1
        over.set()
        await asyncio.gather(*clients)
        await until_counted(proxy, "sluice_worker_deaths_total", kills)
        looping = [why for why in (await readiness(proxy))[1] if "again and again" in why]
        counted = total((await scrape(proxy))[0], "sluice_requests_total")
    with capsys.disabled():
        print(f"\n{kills} kills in {SECONDS} s: {asked}, {counted:g} counted, {scrapes} scrapes, {looping}")
    assert set(asked) == {"200", "cut"}
    assert asked["200"] > 0
    assert asked["cut"] <= 8 * kills  # a client has one request at a time
    assert counted <= asked["200"] + asked["cut"]
