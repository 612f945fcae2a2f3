"""Promise 1, answers: what the upstream sends is what the client receives, byte for byte."""

from __future__ import annotations

import gzip
import random
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, PlanConfig
from proxy.config.values import Secret
from tests.fakes.framed import cut_at_random, framed
from tests.fakes.line import LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import CHAT, DONE, FINISH, IMAGES, RECORDINGS, ROLE
from tests.fakes.relaying import EVENTLESS
from tests.fakes.running import KEY

if TYPE_CHECKING:
    from tests.fakes.recordings import Recording

pytestmark = pytest.mark.usefixtures("relay_form")

_STREAM = b'{"model":"m","stream":true}'
_STATEFUL: Final[dict[str, Any]] = {
    "plans": {"all": PlanConfig(endpoints=("inference", "stateful"))},
    "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="all"),),
}


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS.keys())
async def test_a_stream_arrives_as_it_was_sent(recording: Recording) -> None:
    """Whole, byte by byte and at drawn cuts, in each framing; the client's connection stays in use."""
    draw = random.Random(recording.body)
    cuttings = [("chunked", "whole"), ("length", "whole"), ("close", "bytes")]
    cuttings += [(draw.choice(("chunked", "length", "close")), "drawn") for _ in range(4)]
    async with line() as way:
        for framing, cutting in cuttings:
            wire = framed(recording.body, framing, draw)
            step = {"whole": len(wire), "bytes": 1}.get(cutting)
            pieces = (
                list(cut_at_random(wire, draw))
                if step is None
                else [wire[i : i + step] for i in range(0, len(wire), step)]
            )
            answer = await way.answered(pieces, recording.path, _STREAM)
            assert answer.body == recording.body, (framing, cutting)
            assert answer.whole, (framing, cutting)
        await way.proxy.exchange(len(cuttings))
        outcome = "upstream_error" if b'"error":{' in recording.body else "ok"
        assert [line["outcome"] for line in way.proxy.exchanges] == [outcome] * len(cuttings)


async def test_chunk_framing_may_be_cut_anywhere() -> None:
    """Sizes, extensions, trailers and line ends of chunks are split at every byte."""
    body = RECORDINGS["openai"].body
    frames = [b"%X;ext=1\r\n%b\r\n" % (len(body[:10]), body[:10]), chunk(body[10:11]), chunk(body[11:])]
    wire = head() + b"".join(frames) + b"0\r\nX-Trailer: 1\r\n\r\n"
    async with line() as way:
        answer = await way.answered([wire[i : i + 1] for i in range(len(wire))], CHAT, _STREAM)
    assert answer.body == body
    assert answer.whole


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"], ids=["lf", "crlf", "cr"])
async def test_events_larger_than_the_scanner_holds(end: bytes) -> None:
    """Images come as megabytes of base64 on one line."""
    image = b'data: {"type":"image_generation.partial_image","b64_json":"' + b"QUJD" * (1 << 18) + b'"}' + end
    small = b'event: image_generation.completed\ndata: {"type":"image_generation.completed"}\n\n'
    body = image + small + image
    wire = head() + b"".join(chunk(body[i : i + 100_003]) for i in range(0, len(body), 100_003)) + LAST_CHUNK
    async with line() as way:
        answer = await way.answered([wire], IMAGES, b'{"stream":true}')
        assert answer.body == body
        assert answer.whole
        assert (await way.proxy.exchange())["events"] == 3


@pytest.mark.parametrize("size", [65534, 65535, 65536, 65537, 65538, 131072])
async def test_events_about_as_large_as_the_scanner_holds(size: int) -> None:
    """The bound of what is held back is no seam."""
    event = b"data: " + b"x" * (size - 8) + b"\n\n"
    body = ROLE + event + FINISH + DONE
    async with line() as way:
        wire = head() + chunk(body) + LAST_CHUNK
        cut = len(head()) + len(ROLE) + 20
        answer = await way.answered([wire[:cut], wire[cut:]], CHAT, _STREAM)
    assert answer.body == body


@EVENTLESS
@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/chat/completions", "application/json", b'{ "id":"c", "big":12345678901234567890,\n"x":1e400}\n'),
        ("/v1/chat/completions", "application/json", b"\n\n\n\r\n" + b'{"choices":[]}'),
        ("/v1/embeddings", "application/json; charset=utf-8", b'{"data":[{"embedding":[-0.0069292834,1e-07]}]}'),
        ("/v1/audio/speech", "audio/mpeg", bytes(range(256)) * 900),
        ("/v1/moderations", "application/json", b""),
        ("/v1/audio/transcriptions", "text/vtt", b"WEBVTT\r\n\r\n00:00.000 --> 00:01.000\r\nHi"),
    ],
    ids=["json", "blank-lines-first", "embeddings", "audio", "empty", "vtt"],
)
async def test_bodies_that_are_no_events(framing: str, path: str, content_type: str, body: bytes) -> None:
    """JSON, binary and text pass as they are; a length that was announced is announced."""
    if framing == "chunked":
        middle = len(body) // 3
        parts = [part for part in (body[:middle], body[middle:]) if part]
        wire = head("200 OK", content_type) + b"".join(map(chunk, parts)) + LAST_CHUNK
    else:
        lines = [f"Content-Length: {len(body)}"] if framing == "length" else []
        wire = head("200 OK", content_type, *lines, chunked=False) + body
    async with line() as way:
        answer = await way.answered([wire[:70], wire[70:]], path, b'{"model":"m"}')
    assert answer.status == 200
    assert answer.body == body
    assert answer.whole
    assert answer.header("content-type") == content_type
    assert answer.header("content-length") == (str(len(body)) if framing == "length" else None)


@EVENTLESS
@pytest.mark.parametrize("coding", ["gzip", "br"])
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
async def test_a_coding_nobody_asked_for_passes_untouched(coding: str, content_type: str) -> None:
    """What is compressed can be neither followed nor ended: it is left alone, with its header."""
    body = gzip.compress(RECORDINGS["openai"].body)
    wire = head("200 OK", content_type, f"Content-Encoding: {coding}") + chunk(body[:9]) + chunk(body[9:]) + LAST_CHUNK
    async with line(server={"keepalive_comment": 0.01}) as way:
        answer = await way.answered([wire], CHAT, _STREAM)
        assert b"\r\naccept-encoding: identity\r\n" in way.peer_request.lower()
    assert answer.body == body
    assert answer.whole
    assert answer.header("content-encoding") == coding


@pytest.mark.parametrize(
    ("status", "method", "path"),
    [
        ("204 No Content", "POST", CHAT),
        ("204 No Content", "DELETE", "/v1/files/f"),
        ("304 Not Modified", "GET", "/v1/files/f"),
    ],
)
async def test_answers_without_a_body(status: str, method: str, path: str) -> None:
    """No body, no framing of one, and the connection goes on."""
    async with line(**_STATEFUL) as way:
        body = _STREAM if method == "POST" else None
        answer = await way.answered([head(status, None, chunked=False)], path, body, method=method)
        assert answer.status == int(status[:3])
        assert answer.header("transfer-encoding") is None
        again = await way.answered([head() + chunk(FINISH + DONE) + LAST_CHUNK], CHAT, _STREAM)
    assert again.body == FINISH + DONE


@EVENTLESS
async def test_head_has_the_headers_and_no_body() -> None:
    """RFC 9110 section 9.3.2; the length is that of the body a GET would have."""
    wire = head("200 OK", "application/json", "Content-Length: 1234", chunked=False)
    async with line(**_STATEFUL) as way:
        answer = await way.answered([wire], "/v1/files/f1", None, method="HEAD", headers=())
        assert answer.status == 200
        assert answer.header("content-length") == "1234"
        missing = head("404 Not Found", "text/plain", chunked=False) + b"no"
        again = await way.answered([missing], "/v1/files/f", None, method="GET", headers=())
    assert (again.status, again.body, again.whole) == (404, b"no", True)


@EVENTLESS
@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("400 Bad Request", b'[{"error":{"code":400,"message":"x","status":"INVALID_ARGUMENT"}}]'),
        ("401 Unauthorized", b'{\n  "error": {"message": "Incorrect API key provided"}\n}\n'),
        ("422 Unprocessable Entity", b'{"object":"error","message":{"detail":[{"type":"extra_forbidden"}]}}'),
        ("429 Too Many Requests", b'{"error":{"code":"429","message":"Please retry after 2 seconds."}}'),
        ("502 Bad Gateway", b"<html><h1>502</h1></html>"),
        ("529 Overloaded", b""),
    ],
)
async def test_the_upstreams_own_errors_pass(status: str, body: bytes) -> None:
    """Status, body and retry headers, whether a stream was asked for or not."""
    wire = head(status, "application/json", "Retry-After: 2", "x-should-retry: true") + (chunk(body) if body else b"")
    async with line() as way:
        answer = await way.answered([wire + LAST_CHUNK], CHAT, _STREAM)
        assert (await way.proxy.exchange())["outcome"] == "upstream_error"
    assert answer.status == int(status[:3])
    assert answer.body == body
    assert answer.header("retry-after") == "2"
    assert answer.header("x-should-retry") == "true"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("name", ["openai", "bom", "no-space", "openrouter", "crlf", "ids", "two-data-lines"])
async def test_events_under_a_wrong_content_type(name: str, content_type: str | None) -> None:
    """No SDK looks at the content type: what was read to recognise events arrives too."""
    body = RECORDINGS[name].body
    wire = head("200 OK", content_type) + chunk(body) + LAST_CHUNK
    first = len(head("200 OK", content_type)) + 5
    async with line() as way:
        answer = await way.answered([wire[:first], wire[first : first + 3], wire[first + 3 :]], CHAT, _STREAM)
    assert answer.body == body
    assert answer.header("content-type") == (content_type or "text/event-stream")
