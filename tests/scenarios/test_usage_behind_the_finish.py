"""Clients leave at the finish reason and the usage comes behind it: the upstream is heard out, for a while."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import pytest

from proxy.phases import relay
from tests.fakes.leaving import PROMPT_TOKENS, drain_ends, left, received
from tests.fakes.line import LAST_CHUNK, PATIENCE_S, chunk, line
from tests.fakes.recordings import CHAT, DONE, RESPONSES
from tests.fakes.settled import nothing_held, settled_row
from tests.fakes.usage_recordings import event, plain, said, typed
from tests.fakes.waiting import TIMER_S, until

if TYPE_CHECKING:
    from tests.fakes.line import Line
    from tests.fakes.raw_upstream import RawPeer

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"]), pytest.mark.usefixtures("relay_form")]

STARTED: Final = [said("one two"), said(" three")]
FINISHED: Final = [*STARTED, said(None, "stop")]
USAGE: Final = event({"id": "c", "choices": [], "usage": plain(21, 50)})
LIMIT_S: Final = 0.050
TRIES: Final = 10  # the machine may be busy with something else


async def left_behind_the_finish(way: Line) -> RawPeer:
    """The client has the finish reason and leaves; the proxy knows, and settles."""
    peer = await received(way, FINISHED)
    await way.client.reset()
    await until(lambda: is_settling(way), "an exchange that settles")
    return peer


def is_settling(way: Line) -> bool:
    live = way.proxy.worker.app.live._live
    return [exchange.timeline.phase for exchange in live] == ["settle"]


async def still_heard(peer: RawPeer, seconds: float) -> None:
    """The upstream's connection stays open for that long."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.recv(), seconds)


@pytest.mark.parametrize("end", [DONE, b""], ids=["done", "no done"])
async def test_usage_that_comes_100_ms_later(end: bytes) -> None:
    async with line() as way:
        peer = await left_behind_the_finish(way)
        await still_heard(peer, 0.1)
        assert way.proxy.exchanges == []
        await peer.send(chunk(USAGE + end) + LAST_CHUNK)
        await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("exact", 21, 50)
    assert (row["outcome"], row["status"]) == ("client_gone", 499)


async def test_usage_that_is_hidden_from_the_client() -> None:
    """The same where Sluice asked for it."""
    async with line(upstream={"usage": "inject"}) as way:
        peer = await left_behind_the_finish(way)
        await peer.send(chunk(USAGE))
        row = await settled_row(way.proxy)
    assert (row["grade"], row["output_tokens"]) == ("exact", 50)


async def test_a_connection_whose_answer_was_heard_out_is_kept() -> None:
    keeping = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with line() as way:
        peer = await way.open()
        await peer.send(keeping + chunk(b"".join(FINISHED)))
        answer = await way.client.head()
        await way.piece(answer)
        await way.client.reset()
        await until(lambda: is_settling(way), "an exchange that settles")
        await peer.send(chunk(USAGE + DONE) + LAST_CHUNK)
        assert (await settled_row(way.proxy))["grade"] == "exact"
        await nothing_held(way.proxy)
        assert way.proxy.worker.app.upstreams["up"].pool.idle == 1


@pytest.mark.parametrize(
    ("path", "events", "tokens"),
    [
        (CHAT, [*STARTED, said(None, "stop", usage=plain(21, 50))], (21, 50)),
        (RESPONSES, [typed("response.completed", response={"usage": plain(5, 6)}, sequence_number=0)], (5, 6)),
    ],
    ids=["beside the finish reason", "in the terminal event"],
)
async def test_usage_that_is_there_already_is_not_waited_for(
    path: str, events: list[bytes], tokens: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_AFTER_FINISH_S", 60.0)
    async with line() as way:
        peer = await received(way, events, path)
        await way.client.reset()
        await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("exact", *tokens)


async def test_an_upstream_that_goes_on_behind_the_usage_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_AFTER_FINISH_S", 60.0)
    async with line() as way:
        peer = await left_behind_the_finish(way)
        await peer.send(chunk(USAGE))
        await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        assert (await settled_row(way.proxy))["output_tokens"] == 50
        await nothing_held(way.proxy)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_an_upstream_that_ends_without_saying(how: str) -> None:
    async with line() as way:
        peer = await left_behind_the_finish(way)
        if how == "rst":
            peer.reset()
        else:
            peer.close()
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("counted", PROMPT_TOKENS, 3)


@pytest.mark.parametrize("babble", [b"", b": keep-alive\n\n"], ids=["silent", "comments"])
async def test_an_upstream_that_never_says(babble: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments do not prolong the wait."""
    monkeypatch.setattr(relay, "_AFTER_FINISH_S", 0.15)
    async with line() as way:
        peer = await left_behind_the_finish(way)
        if babble:
            await peer.send(chunk(babble))
        await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
        assert way.proxy.worker.app.upstreams["up"].pool.open == 0
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("counted", PROMPT_TOKENS, 3)
    assert row["outcome"] == "client_gone"


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_the_wait_is_two_seconds() -> None:
    async with line() as way:
        began_s = time.perf_counter()
        peer = await left_behind_the_finish(way)
        await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        waited_s = time.perf_counter() - began_s
        assert (await settled_row(way.proxy))["grade"] == "counted"
    assert 2.0 - TIMER_S <= waited_s < 20, "the rest is for a busy machine"


async def test_the_end_of_a_drain_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_AFTER_FINISH_S", 60.0)
    async with line() as way:
        peer = await left_behind_the_finish(way)
        drain_ends(way)
        await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert (row["grade"], row["output_tokens"]) == ("counted", 3)


async def test_before_the_finish_the_upstream_is_aborted_within_50_ms() -> None:
    figures = []
    for _ in range(TRIES):
        async with line() as way:
            peer = await received(way, STARTED)
            began_s = time.perf_counter()
            await left(way, peer)
            figures.append(time.perf_counter() - began_s)
            assert (await settled_row(way.proxy))["output_tokens"] == 3
        if figures[-1] < LIMIT_S:
            break
    assert min(figures) < LIMIT_S
