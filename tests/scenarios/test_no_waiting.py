"""Promise 2: a complete event goes downstream when it was read, whatever comes behind it."""

from __future__ import annotations

import pytest

from tests.fakes.line import LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import DONE, FINISH, RESPONSES, ROLE, delta, response_event
from tests.fakes.relaying import EVENTLESS

pytestmark = [pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"]), pytest.mark.usefixtures("relay_form")]


async def test_the_head_comes_before_the_first_event() -> None:
    """A model may think for minutes: the client's timers need to see the answer's head."""
    async with line() as way:
        peer, answer = await way.begun()
        assert answer.status == 200
        await peer.send(chunk(FINISH + DONE) + LAST_CHUNK)
        assert await way.piece(answer) == FINISH + DONE


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
async def test_an_event_does_not_wait_for_the_next(end: bytes) -> None:
    """The next has begun and the upstream falls silent: the complete one is there."""
    event, following = (text.replace(b"\n", end) for text in (delta("one"), delta("two")))
    async with line() as way:
        peer, answer = await way.begun()
        for begun in (1, 30, len(following) - len(end) - 1):
            await peer.send(chunk(event + following[:begun]))
            assert await way.piece(answer) == event
            await peer.send(chunk(following[begun:]))
            assert await way.piece(answer) == following
        await peer.send(chunk(DONE) + LAST_CHUNK)
        assert await way.piece(answer) == DONE


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
async def test_nothing_is_collected(end: bytes) -> None:
    """Each event is with the client before the upstream sends another; the blank line alone completes it."""
    async with line() as way:
        peer, answer = await way.begun()
        for number in range(20):
            event = delta(str(number)).replace(b"\n", end)
            cut = len(event) - len(end)
            await peer.send(chunk(event[:cut]))
            await peer.send(chunk(event[cut:]))
            assert await way.piece(answer) == event
        await peer.send(chunk(DONE) + LAST_CHUNK)
        assert await way.piece(answer) == DONE
        assert await way.piece(answer) == b""


async def test_comments_pass_at_once() -> None:
    """An upstream's own keep-alive keeps the client's connection alive only if it is not held."""
    async with line() as way:
        peer, answer = await way.begun()
        for comment in (b": OPENROUTER PROCESSING\n\n", b":\n\n", b"\n\n", b": keep-alive\r\n\r\n"):
            await peer.send(chunk(comment))
            assert await way.piece(answer) == comment
        await peer.send(chunk(FINISH + DONE) + LAST_CHUNK)
        assert await way.piece(answer) == FINISH + DONE


@pytest.mark.parametrize("frames", ["one", "each"])
async def test_what_was_read_together_is_written_together(frames: str) -> None:
    """Several events of one upstream write are one chunk frame downstream, however they were framed above."""
    events = [ROLE, *(delta(str(number)) for number in range(50)), FINISH]
    wire = chunk(b"".join(events)) if frames == "one" else b"".join(map(chunk, events))
    async with line() as way:
        peer, answer = await way.begun()
        await peer.send(wire)
        assert await way.piece(answer) == b"".join(events)
        await peer.send(chunk(DONE) + LAST_CHUNK)
        assert await way.piece(answer) == DONE


async def test_a_large_event_flows_before_it_is_complete() -> None:
    """What is held back is at most what the scanner holds."""
    start = b'data: {"type":"image_generation.partial_image","b64_json":"' + b"A" * 300_000
    async with line() as way:
        peer, answer = await way.begun("/v1/images/generations", b'{"stream":true}')
        await peer.send(chunk(start))
        while len(answer.body) < len(start):
            await way.piece(answer)
        assert answer.body == start
        await peer.send(chunk(b'"}\n\n') + LAST_CHUNK)
        assert await way.piece(answer) == b'"}\n\n'


async def test_events_of_responses_do_not_wait() -> None:
    """With their `event:` lines in a read of their own."""
    async with line() as way:
        peer, answer = await way.begun(RESPONSES)
        for number, kind in enumerate(("response.created", "response.output_text.delta", "response.completed")):
            event = response_event(kind, number)
            cut = event.index(b"\n") + 1
            await peer.send(chunk(event[:cut]))
            await peer.send(chunk(event[cut:]))
            assert await way.piece(answer) == event
        await peer.send(LAST_CHUNK)
        assert await way.piece(answer) == b""


@EVENTLESS
async def test_bodies_without_events_pass_as_they_come() -> None:
    """Audio that is played while it is made."""
    async with line() as way:
        peer = await way.open("/v1/audio/speech", b'{"model":"tts-1"}')
        await peer.send(head("200 OK", "audio/mpeg"))
        answer = await way.client.head()
        for number in range(5):
            await peer.send(chunk(bytes([number]) * 100))
            assert await way.piece(answer) == bytes([number]) * 100
        await peer.send(LAST_CHUNK)
        assert await way.piece(answer) == b""


async def test_the_end_does_not_wait_for_the_connections_end() -> None:
    """The last chunk ends the answer, though the upstream keeps its connection open."""
    async with line() as way:
        peer, answer = await way.begun()
        await peer.send(chunk(FINISH + DONE) + LAST_CHUNK)
        assert await way.piece(answer) == FINISH + DONE
        assert await way.piece(answer) == b""
        assert (await way.proxy.exchange())["outcome"] == "ok"
