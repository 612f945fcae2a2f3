"""Usage that Sluice asks for is its own affair: the client gets the stream it asked for, and the row is exact."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import pytest
from msgspec.structs import asdict

from proxy.config.settings import ModelConfig
from proxy.config.upstreams import RouteConfig
from tests.fakes.answering import CHAT_EVENTS, chat, response
from tests.fakes.asked import SHAPES
from tests.fakes.framed import cut_at_random, framed
from tests.fakes.line import JSON_TYPE, LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import CHAT, COMPLETIONS, OPENAI, RECORDINGS, RESPONSE, RESPONSES
from tests.fakes.relaying import EVENTLESS
from tests.fakes.settled import all_rows, settled_row
from tests.fakes.stage import stage

if TYPE_CHECKING:
    from tests.fakes.asked import Shape
    from tests.fakes.client import Answer
    from tests.fakes.line import Line

pytestmark = pytest.mark.usefixtures("relay_form")

ASKS: Final = b'"include_usage":true'
STREAM: Final = b'{"model":"m","stream":true}'
INJECTED: Final = b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'
INJECTING: Final = {"usage": "inject"}
UNASKED: Final = SHAPES["openai"].unasked
REFUSALS: Final = {
    "azure": (400, b'{"error":{"message":"Unrecognized request argument supplied: stream_options","code":null}}'),
    "mistral": (422, b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}'),
}


def body_of(request: bytes) -> bytes:
    """The body, whose length is as its head says."""
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
    return body


async def told(way: Line, shape: Shape, framing: str, draw: random.Random, *, whole: bool) -> Answer:
    """An answer of an upstream that tells of usage when it is asked to."""
    peer = await way.open(shape.path, STREAM)
    wire = framed(shape.asked if ASKS in way.peer_request else shape.unasked, framing, draw)
    for piece in [wire] if whole else cut_at_random(wire, draw):
        await peer.send(piece)
    peer.close()
    return await way.answer()


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_the_client_gets_the_bytes_of_its_own_request(framing: str, *, whole: bool) -> None:
    draw = random.Random(f"{framing} {whole}")
    expected = {}
    async with line(upstream=INJECTING) as injecting, line() as plain:
        for name, shape in SHAPES.items():
            shown = await told(injecting, shape, framing, draw, whole=whole)
            own = await told(plain, shape, framing, draw, whole=whole)
            assert shown.body == own.body == shape.unasked, name
            assert shown.whole, name
            assert shown.status == own.status == 200, name
            if shape.usage is not None:
                expected[shown.header("x-sluice-id")] = (name, "exact", asdict(shape.usage))
            assert body_of(injecting.peer_request) == INJECTED
            assert body_of(plain.peer_request) == STREAM
        rows = await all_rows(injecting.proxy, len(SHAPES))
    for key, (name, grade, usage) in expected.items():
        row = rows[str(key)]
        assert (name, row["grade"]) == (name, grade)
        assert (name, {column: row[column] for column in usage if column in row}) == (
            name,
            {column: value for column, value in usage.items() if column in row},
        )
    assert len(expected) > 30


@pytest.mark.parametrize(
    ("sent", "upstream_gets", "hidden"),
    [
        (b'{"stream":true,"model":"m","stream_options":{"include_usage":true}}', None, False),
        (b'{"stream":true,"model":"m","stream_options":{"include_usage": false}}', b'{"include_usage": true}', True),
        (b'{"stream":true,"model":"m","stream_options":{"include_usage":null}}', b'{"include_usage":true}', True),
        (b'{"stream":true,"model":"m","stream_options": {}}', b'{"include_usage":true}', True),
        (b'{"stream":true,"model":"m","stream_options":null}', b'{"include_usage":true}', True),
        (
            b'{"stream":true,"model":"m","stream_options":{"include_obfuscation":false}}',
            b'{"include_usage":true,"include_obfuscation":false}',
            True,
        ),
        (b'{"stream":true,"model":"m","stream_options":{"continuous_usage_stats":true}}', None, False),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_the_client_says_of_usage_is_respected(
    path: str, sent: bytes, upstream_gets: bytes | None, *, hidden: bool
) -> None:
    """Nothing is hidden from who asked, and nothing shown to who did not; the request differs by the edit alone."""
    start = sent.index(b'"stream_options":') + len(b'"stream_options":')
    edited = sent if upstream_gets is None else sent[:start] + b" " * (sent[start] == 0x20) + upstream_gets + b"}"
    async with line(upstream=INJECTING) as way:
        answer = await way.answered([head() + chunk(OPENAI) + LAST_CHUNK], path, sent)
        assert body_of(way.peer_request) == edited
        assert answer.body == (UNASKED if hidden else OPENAI)
        row = await settled_row(way.proxy)
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("exact", 12, 12)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, b'{"model":"m","stream":true,"input":"Hi"}'),
        ("/v1/embeddings", b'{"model":"m","input":"Hi"}'),
        ("/v1/embeddings", b'{"model":"m","input":"Hi","stream":true}'),
        (CHAT, b'{"model":"m","messages":[]}'),
        (CHAT, b'{"model":"m","messages":[],"stream":false}'),
        ("/v1/images/generations", b'{"model":"m","stream":true}'),
    ],
)
async def test_other_requests_are_left_alone(path: str, body: bytes) -> None:
    async with line(upstream=INJECTING) as way:
        kind = "text/event-stream" if b"true" in body else "application/json"
        said = RESPONSE if b"true" in body else b'{"usage":null}'
        answer = await way.answered([head("200 OK", kind) + chunk(said) + LAST_CHUNK], path, body)
        assert body_of(way.peer_request) == body
    assert answer.body == said


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"\\ud83d"}],"seed":12345678901234567890}',
        b'{ "messages" : [ ] ,\n"stream" :true , "model" : "m" , "x":1e400 }\n',
        '{"user":"é","model":"m","stream":true,"é":[]}'.encode(),
    ],
)
async def test_the_request_differs_by_the_edits_alone(body: bytes) -> None:
    """With a renamed model too; numbers, escapes and spacing stay."""
    models = {"m": ModelConfig(routes=(RouteConfig(upstream="up", model="their/model-7"),))}
    async with line(upstream=INJECTING, models=models) as way:
        answer = await way.answered([head() + chunk(OPENAI) + LAST_CHUNK], CHAT, body)
        sent = body_of(way.peer_request)
    assert answer.body == UNASKED
    edit = b'"stream_options":{"include_usage":true},'
    assert sent.count(edit) == sent.count(b'"their/model-7"') == 1
    assert sent.replace(edit, b"").replace(b'"their/model-7"', b'"m"') == body


def refusing(status: int, error: bytes) -> Any:
    """An upstream that knows no `stream_options`."""
    return lambda request: response(error, status=status) if b"stream_options" in request else chat(request)


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_who_refuses_to_be_asked_is_asked_again_without(refusal: tuple[int, bytes]) -> None:
    """Once: the next request goes without at once."""
    async with stage(refusing(*refusal), upstream_settings=INJECTING) as (upstream, proxy, client):
        for count, attempts in ((1, 2), (2, 1)):
            answer = await client.ask("POST", CHAT, STREAM, headers=(JSON_TYPE,))
            assert (answer.status, answer.body, answer.whole) == (200, CHAT_EVENTS, True)
            row = await settled_row(proxy, count)
            assert (row["attempts"], row["outcome"], row["status"]) == (attempts, "ok", 200)
        assert [body_of(request) for request in upstream.requests] == [INJECTED, STREAM, STREAM]
        assert proxy.sample("sluice_upstream_attempts_total", upstream="up", result="4xx") == 1


@pytest.mark.parametrize("options", [b'{"include_usage":true}', b'{"continuous_usage_stats":true}'])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_who_asked_gets_the_refusal(refusal: tuple[int, bytes], options: bytes) -> None:
    """As it is, and nothing is remembered."""
    own = STREAM[:-1] + b',"stream_options":' + options + b"}"
    async with stage(refusing(*refusal), upstream_settings=INJECTING) as (upstream, proxy, client):
        answer = await client.ask("POST", CHAT, own, headers=(JSON_TYPE,))
        assert (answer.status, answer.body) == refusal
        row = await settled_row(proxy)
        assert (row["attempts"], row["outcome"], row["grade"], row["output_tokens"]) == (
            1,
            "upstream_error",
            "exact",
            0,
        )
        await client.ask("POST", CHAT, STREAM, headers=(JSON_TYPE,))
        assert [body_of(request) for request in upstream.requests] == [own, INJECTED, STREAM]


@EVENTLESS
@pytest.mark.parametrize("status", [400, 422, 500])
async def test_other_errors_pass_once(status: int) -> None:
    """About something else, or with a status that refuses nothing: the client gets it, and asking goes on."""
    error = b'{"error":{"message":"max_tokens is too large"}}' if status < 500 else b'{"error":"stream_options"}'
    async with stage(lambda _: response(error, status=status), upstream_settings=INJECTING) as (
        upstream,
        proxy,
        client,
    ):
        for count in (1, 2):
            answer = await client.ask("POST", CHAT, STREAM, headers=(JSON_TYPE,))
            assert (answer.status, answer.body) == (status, error)
            assert (await settled_row(proxy, count))["attempts"] == 1
        assert [body_of(request) for request in upstream.requests] == [INJECTED, INJECTED]


async def test_a_refusal_is_believed_once_the_request_went_through_without() -> None:
    """An error that quotes the request names `stream_options` too: whatever a client sends, asking goes on."""
    error = b'{"error":{"message":"max_tokens is too large","input":{"stream_options":{"include_usage":true}}}}'
    answers = iter([response(error, status=400)] * 2 + [response(CHAT_EVENTS, content_type="text/event-stream")])
    async with stage(lambda _: next(answers), upstream_settings=INJECTING) as (upstream, proxy, client):
        answer = await client.ask("POST", CHAT, STREAM, headers=(JSON_TYPE,))
        assert (answer.status, answer.body) == (400, error)
        assert (await settled_row(proxy))["attempts"] == 2
        answer = await client.ask("POST", CHAT, STREAM, headers=(JSON_TYPE,))
        assert (answer.status, answer.body) == (200, CHAT_EVENTS)
        assert [body_of(request) for request in upstream.requests] == [INJECTED, STREAM, INJECTED]


@EVENTLESS
def test_every_recorded_shape_is_here() -> None:
    """Both forms differ wherever usage can be hidden at all."""
    chats = {name for name, (path, _) in RECORDINGS.items() if path in (CHAT, COMPLETIONS)}
    assert chats <= SHAPES.keys()
    assert sum(shape.asked != shape.unasked for shape in SHAPES.values()) > 25
