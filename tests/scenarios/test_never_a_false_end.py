"""Promise 5: an upstream that dies, stalls or truncates never looks like a finished answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import pytest

from proxy.config.upstreams import TimeoutsConfig
from proxy.phases import relay
from tests.fakes.endings import assert_cut, assert_envelope, assert_told, end, recorded, rest
from tests.fakes.line import LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import (
    CHAT,
    COMPLETIONS,
    DONE,
    FINISH,
    ROLE,
    delta,
)
from tests.fakes.relaying import EVENTLESS
from tests.fakes.waiting import LONG_S

pytestmark = pytest.mark.usefixtures("relay_form")

_PROTOCOL: Final = "upstream_protocol_error"
_TIMEOUT: Final = "upstream_timeout"
_HALF: Final = b'data: {"choices":[{"index":0,"delta":{"content":"ha'
_LARGE: Final = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"A" * 200_000


@EVENTLESS
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Type: text/ev", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["nothing", "half-a-line", "half-a-head", "interim"],
)
async def test_an_end_before_the_head(how: str, sent: bytes) -> None:
    """A 502 in OpenAI's envelope."""
    async with line() as way:
        peer = await way.open()
        await peer.send(sent)
        end(peer, how)
        answer = await way.answer()
        assert_envelope(answer, 502, _PROTOCOL)
        await recorded(way, _PROTOCOL, status=502, phase="forward")
        assert way.proxy.sample("sluice_upstream_attempts_total", upstream="up", result=_PROTOCOL) == 1


@EVENTLESS
@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        head("200 OK", "a/b", "Content-Length: 5"),
        head("200 OK", "a/b", "Content-Length: 5", "Content-Length: 6", chunked=False),
        head("200 OK", "a/b", "Transfer-Encoding: gzip", chunked=False),
        head("307 Temporary Redirect", None, "Location: https://elsewhere.example/", chunked=False),
        head("101 Switching Protocols", None, "Upgrade: websocket", chunked=False),
    ],
    ids=["ssh", "http2", "both-framings", "two-lengths", "coding", "redirect", "upgrade"],
)
async def test_a_head_that_is_none(garbage: bytes) -> None:
    """Nothing of it can be trusted, so it is a 502."""
    async with line() as way:
        answer = await way.answered([garbage], close=False)
        assert_envelope(answer, 502, _PROTOCOL)
        await recorded(way, _PROTOCOL, status=502)


_BREAKS: Final = {
    "fin": (b"", "fin"),
    "rst": (b"", "rst"),
    "half-a-chunk": (b"ff\r\n: x", "fin"),
    "half-a-size": (b"f", "fin"),
    "garbage-chunk": (b"zz\r\n", "open"),
    "garbage-behind-a-chunk": (b"1\r\n:garbage", "open"),
    "event-without-a-size": (delta("x" * 3000) + b"\r\n", "open"),
    "half-a-last-chunk": (b"0\r\n", "fin"),
    "half-an-event": (chunk(_HALF), "fin"),
    "half-an-event-clean": (chunk(_HALF) + LAST_CHUNK, "open"),
    "half-an-event-rst": (chunk(_HALF), "rst"),
}


@pytest.mark.parametrize("events", [0, 1, 3], ids=lambda events: f"{events}-events")
@pytest.mark.parametrize(("broken", "how"), _BREAKS.values(), ids=_BREAKS.keys())
async def test_an_end_within_the_stream(events: int, broken: bytes, how: str) -> None:
    """Whole events, the error as an event, `[DONE]`, a proper end; half an event is not sent."""
    sent = b"".join(map(delta, "abc"[:events]))
    async with line() as way:
        peer, answer = await way.begun()
        if sent:
            await peer.send(chunk(sent))
            await way.piece(answer)
        await peer.send(broken)
        if how != "open":
            end(peer, how)
        await rest(way, answer)
        assert_told(answer, sent, _PROTOCOL)
        await recorded(way, _PROTOCOL, events=events, upstream_status=200, phase="relay")


async def test_an_end_without_framing() -> None:
    """Until the connection's end: then only the answer itself tells whether it is whole."""
    async with line() as way:
        answer = await way.answered([head(chunked=False) + ROLE + delta("a")])
        assert_told(answer, ROLE + delta("a"), _PROTOCOL)
        await recorded(way, _PROTOCOL)


async def test_a_short_length() -> None:
    """Content-Length counts more than came."""
    async with line() as way:
        answer = await way.answered([head("200 OK", "text/event-stream", "Content-Length: 999", chunked=False) + ROLE])
        assert_told(answer, ROLE, _PROTOCOL)
        await recorded(way, _PROTOCOL)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_clean_end_without_a_finish(path: str) -> None:
    """Every SDK would show it as a finished answer."""
    async with line() as way:
        answer = await way.answered([head() + chunk(ROLE + delta("a")) + LAST_CHUNK], path)
        assert_told(answer, ROLE + delta("a"), _PROTOCOL)
        await recorded(way, _PROTOCOL)


async def test_an_end_after_the_finish_reason() -> None:
    """What broke may have held the usage: an upstream that dies there is told, a clean end is left as it is."""
    async with line() as way:
        answer = await way.answered([head() + chunk(ROLE + FINISH)])
        assert_told(answer, ROLE + FINISH, _PROTOCOL)
        await recorded(way, _PROTOCOL)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_an_end_after_done(how: str) -> None:
    """The answer is whole, however its body ends."""
    async with line() as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE + FINISH + DONE))
        await way.piece(answer)
        end(peer, how)
        assert await rest(way, answer) == b""
        assert answer.whole
        await recorded(way, "ok")


async def test_a_body_held_open_after_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDKs wait for the end of the body, so the client is not made to wait for the upstream's."""
    monkeypatch.setattr(relay, "_AFTER_DONE_S", 0.05)
    async with line() as way:
        answer = await way.answered([head() + chunk(ROLE + FINISH + DONE)], close=False)
        assert answer.body == ROLE + FINISH + DONE
        assert answer.whole
        await recorded(way, "ok")


@pytest.mark.parametrize("how", ["fin", "rst", "last-chunk"])
async def test_an_end_within_an_oversize_event(how: str) -> None:
    """Half of it is out, so no event can follow: the connection is cut."""
    async with line() as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE + _LARGE))
        while len(answer.body) < len(ROLE + _LARGE):
            await way.piece(answer)
        if how == "last-chunk":
            await peer.send(LAST_CHUNK)
        else:
            end(peer, how)
        assert await rest(way, answer) == b""
        assert_cut(answer, ROLE + _LARGE)
        await recorded(way, _PROTOCOL)


@pytest.mark.parametrize(("limit", "by"), [("idle", "idle"), ("total", "total")])
async def test_a_stream_that_takes_too_long(limit: str, by: str) -> None:
    """The error event says timeout, the metric says which."""
    async with line(upstream={"timeouts": TimeoutsConfig(**{limit: 0.5})}) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE + _HALF))
        await rest(way, answer)
        assert_told(answer, ROLE, _TIMEOUT)
        await asyncio.wait_for(peer.ended(), LONG_S)
        await recorded(way, _TIMEOUT, aborted_by=by)
        assert way.proxy.sample("sluice_aborts_total", phase="relay", by=by) == 1


async def test_framing_without_a_byte_of_body_is_silence() -> None:
    """A size line that never ends says nothing, however steadily."""
    async with line(upstream={"timeouts": TimeoutsConfig(idle=0.3)}) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE) + b"5;")
        resting = asyncio.ensure_future(rest(way, answer))
        for _ in range(200):
            with contextlib.suppress(ConnectionError):
                await peer.send(b"x")
            if (await asyncio.wait({resting}, timeout=0.05))[0]:
                break
        await resting
        assert_told(answer, ROLE, _TIMEOUT)
        await recorded(way, _TIMEOUT, aborted_by="idle")


async def test_a_steady_stream_is_not_idle_but_has_a_total() -> None:
    """Each event starts the silence anew; nothing starts the whole anew."""
    timeouts = TimeoutsConfig(idle=1.0, total=1.5)
    async with line(upstream={"timeouts": timeouts}) as way:
        peer, answer = await way.begun()
        sent = b""
        while not answer.whole:
            await peer.send(chunk(delta("x")))
            if await way.piece(answer) != delta("x"):
                break
            sent += delta("x")
        await rest(way, answer)
        assert_told(answer, sent, _TIMEOUT)
        await recorded(way, _TIMEOUT, aborted_by="total")


@EVENTLESS
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-", head("100 Continue", None, chunked=False)])
@pytest.mark.parametrize("limit", ["first_byte", "total"])
async def test_no_head_in_time(sent: bytes, limit: str) -> None:
    """A 504 in OpenAI's envelope, and the upstream's connection is gone."""
    async with line(upstream={"timeouts": TimeoutsConfig(**{limit: 0.3})}) as way:
        peer = await way.open()
        await peer.send(sent)
        answer = await way.answer()
        assert_envelope(answer, 504, _TIMEOUT)
        await asyncio.wait_for(peer.ended(), LONG_S)
        await recorded(way, _TIMEOUT, status=504, phase="forward")
