"""Promise 1, requests: the upstream receives what the client sent, and of it only a renamed model is another."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig
from proxy.config.upstreams import RouteConfig
from proxy.config.values import Secret
from tests.fakes.line import JSON_TYPE, LAST_CHUNK, PATIENCE_S, Line, chunk, head, line
from tests.fakes.running import KEY

if TYPE_CHECKING:
    from tests.fakes.client import Answer
    from tests.fakes.raw_upstream import RawPeer

_OK: Final = head("200 OK", "application/json", "Content-Length: 2", chunked=False) + b"{}"
_RENAMED: Final[dict[str, Any]] = {
    "models": {"*": ModelConfig(), "alias": ModelConfig(routes=(RouteConfig(model="real/model-1"),))}
}
_STATEFUL: Final[dict[str, Any]] = {
    "plans": {"all": PlanConfig(endpoints=("inference", "stateful"))},
    "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="all"),),
}
_BODIES: Final = {
    "odd-spacing": b'\r\n { "messages" :[ ],\t"model"\n:\n"alias" , "stream": false }\n',
    "big-numbers": b'{"seed":12345678901234567890123,"model":"alias","temperature":0.10000000000000000555,"x":1e400}',
    "unicode-escapes": rb'{"model":"alias","messages":[{"content":"\u00e9\ud83d\ude00\/\u2028"}]}',
    "lone-surrogate": rb'{"messages":[{"content":"cut \ud83d"}],"model":"alias"}',
    "raw-unicode": '{"model":"alias","messages":[{"content":"\u4f60\u597d \U0001f30a\u2028"}]}'.encode(),
    "key-order": b'{"z":1,"y":{"model":"alias","b":2,"a":1},"model":"alias","a":[{"model":"alias"}]}',
    "unread-duplicates": b'{"user":"a","model":"alias","user":"b"}',
    "large": b'{"model":"alias","messages":[{"content":"' + b"0123456789abcdef" * 100_000 + b'"}]}',
}


def _sent(request: bytes) -> bytes:
    """The body of a request, its chunks taken apart."""
    top, _, body = request.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in top.lower():
        assert f"content-length: {len(body)}".encode() in top.lower()
        return body
    whole = b""
    while (size := int(body.split(b"\r\n", 1)[0], 16)) > 0:
        start = body.index(b"\r\n") + 2
        whole += body[start : start + size]
        body = body[start + size + 2 :]
    return whole


async def _upload(
    way: Line, path: str, pieces: list[bytes], *headers: tuple[str, str], chunked: bool
) -> tuple[RawPeer, bytes]:
    """Send a body piece by piece; the upstream's side, and the request it got."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {sum(map(len, pieces))}")
    way.client.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def sending() -> None:
        for piece in pieces:
            way.client.writer.write(chunk(piece) if chunked else piece)
            await way.client.writer.drain()
            await asyncio.sleep(0)
        way.client.writer.write(LAST_CHUNK if chunked else b"")

    async def receiving() -> tuple[RawPeer, bytes]:
        peer = await way.accept()
        return peer, await peer.request()

    _, received = await asyncio.wait_for(asyncio.gather(sending(), receiving()), PATIENCE_S)
    return received


async def _finished(way: Line, peer: RawPeer) -> Answer:
    await peer.send(_OK)
    return await way.answer()


@pytest.mark.parametrize("body", _BODIES.values(), ids=_BODIES.keys())
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_json_body_goes_up_as_it_came(body: bytes, *, chunked: bool) -> None:
    """Numbers, spacing, escapes and order are the client's: nothing is parsed and written anew."""
    async with line() as way:
        cut = len(body) // 2
        peer, request = await _upload(way, "/v1/chat/completions", [body[:cut], body[cut:]], JSON_TYPE, chunked=chunked)
        assert _sent(request) == body
        assert (await _finished(way, peer)).status == 200


@pytest.mark.parametrize("name", _BODIES.keys())
async def test_a_renamed_model_is_the_only_change(name: str) -> None:
    """Only the top-level value changes, and the length with it."""
    body = _BODIES[name]
    if name == "key-order":
        expected = body.replace(b'"model":"alias","a"', b'"model":"real/model-1","a"')
    else:
        assert body.count(b'"alias"') == 1
        expected = body.replace(b'"alias"', b'"real/model-1"')
    async with line(**_RENAMED) as way:
        peer, request = await _upload(way, "/v1/chat/completions", [body], JSON_TYPE, chunked=False)
        assert _sent(request) == expected
        assert (await _finished(way, peer)).status == 200


async def test_a_model_that_is_written_with_escapes_is_recognised() -> None:
    """The route is found by what the upstream would read, not by the spelling."""
    async with line(**_RENAMED) as way:
        peer, request = await _upload(way, "/v1/embeddings", [rb'{"model":"\u0061lias"}'], JSON_TYPE, chunked=False)
        assert _sent(request) == b'{"model":"real/model-1"}'
        await _finished(way, peer)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_body_goes_up_inflated(coding: str) -> None:
    """It must be read; the upstream gets the same JSON, and no Content-Encoding that would not be true."""
    body = _BODIES["raw-unicode"]
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    async with line() as way:
        peer, request = await _upload(
            way, "/v1/chat/completions", [packed], JSON_TYPE, ("Content-Encoding", coding), chunked=False
        )
        assert _sent(request) == body
        assert b"content-encoding" not in request.lower()
        await _finished(way, peer)


def _form(model: bytes, *, model_last: bool) -> list[bytes]:
    """The parts of an upload with a file of bytes that look like boundaries and fields."""
    file = random.Random(7).randbytes(300_000) + b'\r\n--b\r\nname="model"\r\n\r\nfake\r\n--b0unda' + b"\0" * 1000
    parts = [
        b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n'
        b"Content-Type: audio/mpeg\r\n\r\n" + file + b"\r\n",
        b'--b0undary\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model + b"\r\n",
    ]
    return [*(parts if model_last else parts[::-1]), b"--b0undary--\r\n"]


_FORM_TYPE: Final = ("Content-Type", "multipart/form-data; boundary=b0undary")


@pytest.mark.parametrize("model_last", [False, True], ids=["model-first", "model-last"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("model", [b"whisper-1", b"alias"], ids=["as-asked", "renamed"])
async def test_an_upload_goes_up_as_it_came(model: bytes, *, model_last: bool, chunked: bool) -> None:
    """Framed as the client framed it; with a renamed model the announced length is the new one."""
    form = b"".join(_form(model, model_last=model_last))
    expected = b"".join(_form(b"real/model-1" if model == b"alias" else model, model_last=model_last))
    pieces = [form[i : i + 9973] for i in range(0, len(form), 9973)]
    async with line(**_RENAMED) as way:
        peer, request = await _upload(way, "/v1/audio/transcriptions", pieces, _FORM_TYPE, chunked=chunked)
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d\r\n" % len(expected)
        assert framing in request.lower().partition(b"\r\n\r\n")[0] + b"\r\n"
        assert _sent(request) == expected
        assert (await _finished(way, peer)).status == 200


async def test_an_upload_streams_once_its_model_is_known() -> None:
    """The upstream has the first part while the client still holds the second."""
    first, second, end = _form(b"whisper-1", model_last=False)
    async with line() as way:
        way.client.send(
            "POST", "/v1/audio/transcriptions", None, headers=(_FORM_TYPE, ("Transfer-Encoding", "chunked"))
        )
        known = first + second[:100]  # the boundary that ends the field is in it
        way.client.writer.write(chunk(known))
        peer = await way.accept()
        received = b""
        while not received.endswith(chunk(known)):
            received += await asyncio.wait_for(peer.recv(), PATIENCE_S)
        way.client.writer.write(chunk(second[100:] + end) + LAST_CHUNK)
        rest = b""
        while not rest.endswith(LAST_CHUNK):
            rest += await asyncio.wait_for(peer.recv(), PATIENCE_S)
        assert _sent(received + rest) == first + second + end
        assert (await _finished(way, peer)).status == 200


async def test_a_second_model_in_an_upload_never_completes_upstream() -> None:
    """The upstream might obey the second: it does not get the end of the body."""
    first, second, end = _form(b"whisper-1", model_last=False)
    async with line() as way:
        way.client.send("POST", "/v1/audio/transcriptions", first + second + first + end, headers=(_FORM_TYPE,))
        peer = await way.accept()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(peer.request(), PATIENCE_S)
        answer = await way.answer()
    assert answer.status == 400
    assert answer.error["param"] == "model"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_other_bodies_stream_unread(*, chunked: bool) -> None:
    """What the stateful endpoints take is the upstream's concern: any bytes, any method."""
    body = random.Random(3).randbytes(400_000)
    async with line(**_STATEFUL) as way:
        peer, request = await _upload(way, "/v1/uploads/u/parts?a=1&a=%20", [body], chunked=chunked)
        assert request.startswith(b"POST /v1/uploads/u/parts?a=1&a=%20 HTTP/1.1\r\n")
        assert _sent(request) == body
        assert (await _finished(way, peer)).status == 200


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
async def test_requests_without_a_body_get_no_framing(method: str) -> None:
    """RFC 9110 section 8.6."""
    async with line(**_STATEFUL) as way:
        answer = await way.answered([head("200 OK", None, chunked=False)], "/v1/files/f", None, method=method)
        assert answer.status == 200
        lowered = way.peer_request.lower()
    assert b"content-length" not in lowered
    assert b"transfer-encoding" not in lowered


async def test_requests_on_one_connection_do_not_mix() -> None:
    """Two requests written back to back are two requests upstream, in order."""
    bodies = [json.dumps({"model": "m", "n": number, "pad": "x" * 70_000}).encode() for number in range(3)]
    async with line() as way:
        for body in bodies:
            way.client.send("POST", "/v1/chat/completions", body, headers=(JSON_TYPE,))
        for body in bodies:
            peer = await way.accept()
            assert _sent(await peer.request()) == body
            assert (await _finished(way, peer)).body == b"{}"
