"""Keep-alive comments: Sluice's own only where they are switched on, and only where no client trips over them."""

from __future__ import annotations

from typing import Any, Final

import pytest

from proxy.config.upstreams import TimeoutsConfig
from proxy.core.sse import KEEPALIVE_COMMENT
from proxy.phases import relay
from tests.fakes.endings import assert_told, rest
from tests.fakes.line import LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import CHAT, DONE, FINISH, RESPONSES, ROLE, delta, response_event
from tests.fakes.relaying import EVENTLESS

pytestmark = pytest.mark.usefixtures("relay_form")

_ON: Final[dict[str, Any]] = {"server": {"keepalive_comment": 0.03}}
_IDLE: Final[dict[str, Any]] = {"upstream": {"timeouts": TimeoutsConfig(idle=0.5)}}
_TIMEOUT: Final = "upstream_timeout"


@pytest.mark.parametrize("sent", [b"", ROLE, ROLE.replace(b"\n", b"\r\n"), ROLE.replace(b"\n", b"\r")])
async def test_a_silent_stream_gets_comments_between_events(sent: bytes) -> None:
    """Each in a chunk of its own, before the first event as well; the upstream's bytes are all there and counted."""
    tail = FINISH + DONE
    async with line(**_ON) as way:
        peer, answer = await way.begun()
        if sent:
            await peer.send(chunk(sent))
            assert await way.piece(answer) == sent
        for _ in range(3):
            assert await way.piece(answer) == KEEPALIVE_COMMENT
        await peer.send(chunk(tail) + LAST_CHUNK)
        await rest(way, answer)
        assert answer.whole
        assert answer.body.replace(KEEPALIVE_COMMENT, b"") == sent + tail
        exchange = await way.proxy.exchange()
    assert exchange["upstream_bytes"] == len(sent + tail)
    assert exchange["outcome"] == "ok"


async def test_they_are_off_unless_switched_on() -> None:
    """Same bytes is the rule."""
    async with line(**_IDLE) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE))
        await rest(way, answer)
    assert_told(answer, ROLE, _TIMEOUT)


async def test_they_are_no_sign_of_life() -> None:
    """An upstream that is silent for too long is found out, comments or not."""
    async with line(**_ON, **_IDLE) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE))
        await rest(way, answer)
    count = answer.body.count(KEEPALIVE_COMMENT)
    assert 1 <= count <= 17
    assert_told(answer, ROLE + KEEPALIVE_COMMENT * count, _TIMEOUT)


async def test_half_an_event_that_is_held_does_not_stop_them() -> None:
    """The client stands at a boundary: what it has of the half event is nothing."""
    event = delta("two")
    async with line(**_ON) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(ROLE + event[:20]))
        assert await way.piece(answer) == ROLE
        assert await way.piece(answer) == KEEPALIVE_COMMENT
        await peer.send(chunk(event[20:] + DONE) + LAST_CHUNK)
        await rest(way, answer)
    assert answer.body.replace(KEEPALIVE_COMMENT, b"") == ROLE + event + DONE


async def test_never_inside_an_event() -> None:
    """An event too large to be held is out in half."""
    large = b'data: {"x":"' + b"A" * 100_000
    async with line(**_ON, **_IDLE) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(large))
        await rest(way, answer)
    assert answer.body == large
    assert not answer.whole


@pytest.mark.parametrize("mark", [b"id: 7\n", b"id\n", b"id: 7\r\n"])
async def test_never_after_an_id(mark: bytes) -> None:
    """The id is sticky: Python's SDK then takes the comment's blank line for an event (protocol.md section 2.2)."""
    async with line(**_ON, **_IDLE) as way:
        peer, answer = await way.begun()
        await peer.send(chunk(mark + ROLE + delta("a")))
        await rest(way, answer)
    assert_told(answer, mark + ROLE + delta("a"), _TIMEOUT)


async def test_never_after_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of ours may follow the end."""
    monkeypatch.setattr(relay, "_AFTER_DONE_S", 0.15)
    async with line(**_ON) as way:
        answer = await way.answered([head() + chunk(FINISH + DONE)], close=False)
    assert answer.whole
    assert answer.body.replace(KEEPALIVE_COMMENT, b"") == FINISH + DONE
    assert not answer.body.partition(b"[DONE]")[2].strip(b"\n")


@EVENTLESS
async def test_never_in_a_body_without_events() -> None:
    """A comment in audio or JSON would be damage."""
    async with line(**_ON, **_IDLE) as way:
        peer = await way.open(CHAT, b'{"model":"m"}')
        await peer.send(head("200 OK", "application/json") + chunk(b'{"choices":'))
        answer = await way.answer()
    assert answer.body == b'{"choices":'
    assert not answer.whole


async def test_responses_get_them_too() -> None:
    """And their sequence numbers go on as if there were none."""
    sent = response_event("response.created", 0)
    async with line(**_ON, **_IDLE) as way:
        peer, answer = await way.begun(RESPONSES)
        await peer.send(chunk(sent))
        await rest(way, answer)
    plain = answer.body.replace(KEEPALIVE_COMMENT, b"")
    assert len(plain) < len(answer.body)
    assert plain.startswith(sent + b"event: error\n")
    assert b'"sequence_number":1' in plain
