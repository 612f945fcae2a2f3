"""Promise 5 for what is no stream of chat events: other bodies, /responses, errors in forms that clients miss."""

from __future__ import annotations

import json
from typing import Final

import pytest

from tests.fakes.endings import assert_cut, assert_envelope, assert_told, end, recorded, rest
from tests.fakes.line import CHAT_REQUEST, LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import CHAT, DONE, RESPONSES, ROLE, delta, response_event
from tests.fakes.relaying import EVENTLESS

pytestmark = pytest.mark.usefixtures("relay_form")

_PROTOCOL: Final = "upstream_protocol_error"


@EVENTLESS
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"id":"c","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'),
        ("application/json", b'{"error":{"message":"over capacity"}}'),
        ("text/html; charset=utf-8", b"<!DOCTYPE html><p>data: maintenance"),
        ("text/plain", b'{"choices":[]}'),
        (None, b"<html>"),
        (None, b""),
        ("text/plain", b""),
        ("application/problem+json", b"data: {}"),
    ],
)
async def test_a_200_that_is_no_stream(content_type: str | None, body: bytes) -> None:
    """SDKs would show an empty answer; it is a 502 instead."""
    wire = head("200 OK", content_type) + (chunk(body) if body else b"") + LAST_CHUNK
    async with line() as way:
        answer = await way.answered([wire])
        assert_envelope(answer, 502, "upstream_not_a_stream")
        await recorded(way, "upstream_not_a_stream", status=502)


async def test_an_empty_stream() -> None:
    """The content type is right and no event comes: the client is told."""
    async with line() as way:
        answer = await way.answered([head() + LAST_CHUNK])
        assert_told(answer, b"", _PROTOCOL)
        await recorded(way, _PROTOCOL, events=0)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("glued", [b"", b": comment\n", b"data: {}\n"], ids=["alone", "comment", "data"])
@pytest.mark.parametrize("together", [True, False])
async def test_an_error_field_of_llama_cpp(end: bytes, glued: bytes, *, together: bool) -> None:
    """No client reads `error:` lines: the error event takes their place, and the false `[DONE]` is not sent."""
    field = (glued + b'error: {"code":500,"message":"context shift is disabled"}\n\n').replace(b"\n", end)
    start = (ROLE + delta("a")).replace(b"\n", end)
    frames = chunk(start + field + DONE) if together else chunk(start) + chunk(field) + chunk(DONE)
    async with line() as way:
        answer = await way.answered([head() + frames + LAST_CHUNK])
        assert_told(answer, start, _PROTOCOL)
        await recorded(way, _PROTOCOL)


async def test_an_error_event_and_then_silence_is_an_ending() -> None:
    """The upstream said it in a way that clients see; a clean end behind it is honest."""
    body = ROLE + b'data: {"error":{"message":"overloaded","code":503}}\n\n'
    async with line() as way:
        answer = await way.answered([head() + chunk(body) + LAST_CHUNK], CHAT, CHAT_REQUEST)
        assert answer.body == body
        assert answer.whole


@pytest.mark.parametrize(
    "kinds",
    [[], ["response.created"], ["response.created", "response.in_progress", "response.output_text.delta"]],
    ids=len,
)
@pytest.mark.parametrize("how", ["clean", "fin", "half-an-event"])
async def test_responses_without_a_terminal_event(kinds: list[str], how: str) -> None:
    """The nested error event, which every SDK raises, with the next sequence number."""
    sent = b"".join(response_event(kind, number) for number, kind in enumerate(kinds))
    tail = {"clean": LAST_CHUNK, "fin": b"", "half-an-event": chunk(b"event: response.completed\ndata: {")}[how]
    async with line() as way:
        answer = await way.answered([head() + (chunk(sent) if sent else b"") + tail], RESPONSES)
        assert answer.whole
        assert answer.body.startswith(sent)
        event, data, *rest = answer.body[len(sent) :].split(b"\n")
        assert (event, rest) == (b"event: error", [b"", b""])
        told = json.loads(data.removeprefix(b"data: "))
        assert told["type"] == "error"
        assert told["sequence_number"] == len(kinds)
        assert (told["error"]["type"], told["error"]["code"]) == ("server_error", _PROTOCOL)
        await recorded(way, _PROTOCOL, events=len(kinds))


async def test_responses_broken_after_the_terminal_event() -> None:
    """It is the whole answer: there is no `[DONE]` to wait for."""
    sent = response_event("response.created", 0) + response_event("response.completed", 1)
    async with line() as way:
        answer = await way.answered([head() + chunk(sent)], RESPONSES)
        assert answer.body == sent
        assert answer.whole
        await recorded(way, "ok")


@EVENTLESS
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("path", [CHAT, "/v1/audio/speech"])
async def test_bodies_without_events_are_cut(framing: str, how: str, path: str) -> None:
    """Short of their length, or without the last chunk: as they were upstream."""
    start = b'{"id":"c","choices":[{"message":{"content":"H'
    if framing == "length":
        wire = head("200 OK", "application/json", "Content-Length: 999", chunked=False) + start
    else:
        wire = head("200 OK", "application/json") + chunk(start)
    async with line() as way:
        peer = await way.open(path, b'{"model":"m"}')
        await peer.send(wire)
        answer = await way.client.head()
        if framing == "length":
            assert answer.header("content-length") == "999"
            answer.body = await way.client.reader.readexactly(len(start))
        else:
            await way.piece(answer)
        end(peer, how)
        assert await (way.client.reader.read() if framing == "length" else rest(way, answer)) == b""
        assert_cut(answer, start)
        await recorded(way, _PROTOCOL)


@EVENTLESS
async def test_an_error_answer_that_breaks_off() -> None:
    """Nothing went downstream yet, so it becomes a 502."""
    async with line() as way:
        answer = await way.answered([head("429 Too Many Requests", "application/json") + chunk(b'{"error":{"mess')])
        assert_envelope(answer, 502, _PROTOCOL)
        await recorded(way, _PROTOCOL, status=502, upstream_status=429)
