"""Bad bodies: each gets its row of the error table, reaches no upstream, leaves no trace in the log, harms nobody."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import TYPE_CHECKING

import pytest

from proxy.server import connection
from tests.fakes.answering import response
from tests.fakes.client import RecordingClient
from tests.fakes.refusals import GOOD, MARK, Row, assert_not_logged, assert_refused, assert_serves
from tests.fakes.running import KEY
from tests.fakes.stage import stage
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.fakes.running import Running
    from tests.fakes.stage import Stage

CHAT = "/v1/chat/completions"
METERED = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses")
BAD = Row(400)
MODEL_MISSING = Row(400, "missing_required_parameter", "model")
MODEL_TYPE = Row(400, "invalid_type", "model")
STREAM_TYPE = Row(400, "invalid_type", "stream")
TOO_LARGE = Row(413, "request_too_large")
LIMIT_BYTES = 400_000
PROMPT = f'"messages":[{{"role":"user","content":"{MARK}"}}]'.encode()
DEEP = 100_000

BODIES: list[tuple[str, bytes, Row]] = [
    ("nothing", b"", BAD),
    ("text", MARK.encode(), BAD),
    ("blank", b" \r\n", BAD),
    ("cut short", b'{"model":"m",' + PROMPT, BAD),
    ("something behind", b'{"model":"m",' + PROMPT + b'} "more"', BAD),
    ("comma at the end", b'{"model":"m",' + PROMPT + b",}", BAD),
    ("single quotes", f"{{'model':'{MARK}'}}".encode(), BAD),
    ("NaN", b'{"model":"m","temperature":NaN,' + PROMPT + b"}", BAD),
    ("Infinity", b'{"model":"m","temperature":-Infinity,' + PROMPT + b"}", BAD),
    ("raw line feed in a text", f'{{"model":"m","user":"{MARK}\n"}}'.encode(), BAD),
    ("NUL", f'{{"model":"m","user":"{MARK}"}}\0'.encode(), BAD),
    ("list", f'["{MARK}"]'.encode(), BAD),
    ("text in quotes", f'"{MARK}"'.encode(), BAD),
    ("null", b"null", BAD),
    ("byte order mark", b'\xef\xbb\xbf{"model":"m",' + PROMPT + b"}", BAD),
    ("UTF-16", '{"model":"m"}'.encode("utf-16"), BAD),
    ("byte that is not UTF-8", f'{{"model":"m","user":"{MARK}'.encode() + b'\xff"}', BAD),
    ("overlong UTF-8", f'{{"model":"m","messages":[{{"content":"{MARK}'.encode() + b'\xc0\xaf"}]}', BAD),
    ("surrogate in UTF-8", b'{"model":"m",' + PROMPT + b',"user":"\xed\xa0\x80"}', BAD),
    ("deep lists", b'{"model":"m",' + PROMPT + b',"a":' + b"[" * DEEP + b"]" * DEEP + b"}", BAD),
    ("deep objects", b'{"model":"m","a":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", BAD),
    ("deep and never closed", b'{"model":"m","a":' + b"[" * DEEP, BAD),
    ("too many members", b'{"model":"m",' + PROMPT + b',"a":1' * 20_000 + b"}", BAD),
    ("far too many members", b'{"model":"m",' + PROMPT + b',"a":1' * 400_000 + b"}", BAD),
    ("model twice", b'{"model":"m","model":"n",' + PROMPT + b"}", Row(400, param="model")),
    ("model twice, escaped", rb'{"model":"m","mod\u0065l":"n",' + PROMPT + b"}", Row(400, param="model")),
    ("model in capitals", b'{"model":"m","MODEL":"n",' + PROMPT + b"}", Row(400, param="model")),
    ("stream twice", b'{"model":"m","stream":true,"stream":false,' + PROMPT + b"}", Row(400, param="stream")),
    ("no model", b"{" + PROMPT + b"}", MODEL_MISSING),
    ("empty object", b"{}", MODEL_MISSING),
    ("model null", b'{"model":null,' + PROMPT + b"}", MODEL_MISSING),
    ("model empty", b'{"model":"",' + PROMPT + b"}", MODEL_MISSING),
    ("model a number", b'{"model":1,' + PROMPT + b"}", MODEL_TYPE),
    ("model a list", f'{{"model":["{MARK}"]}}'.encode(), MODEL_TYPE),
    ("model an object", f'{{"model":{{"{MARK}":1}}}}'.encode(), MODEL_TYPE),
    ("model half a character", rb'{"model":"\ud83d",' + PROMPT + b"}", Row(400, param="model")),
    ("stream a text", f'{{"model":"m","stream":"{MARK}"}}'.encode(), STREAM_TYPE),
    ("stream a number", b'{"model":"m","stream":1,' + PROMPT + b"}", STREAM_TYPE),
    (
        "stream_options a list",
        b'{"model":"m","stream":true,"stream_options":[],' + PROMPT + b"}",
        Row(400, "invalid_type", "stream_options"),
    ),
    (
        "stream_options without stream",
        b'{"model":"m","stream_options":{"include_usage":true},' + PROMPT + b"}",
        Row(400, param="stream_options"),
    ),
]


@pytest.mark.parametrize(("body", "row"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
async def test_bad_bodies_are_refused_and_the_connection_goes_on(body: bytes, row: Row) -> None:
    async with stage() as (upstream, proxy, client):
        for path in METERED:
            assert_refused(await client.ask("POST", path, body), row)
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
        await assert_serves(proxy, upstream)
    assert_not_logged(proxy)
    refused = [line for line in proxy.exchanges if line["status"] != 200]
    assert {(line["outcome"], line["phase"], line["model"]) for line in refused} == {("bad_request", "admit", None)}


def gzipped(size: int) -> bytes:
    return gzip.compress(b'{"model":"m","user":"' + b"a" * size + b'"}')


ENCODED: list[tuple[str, str, bytes, Row]] = [
    ("br", "br", MARK.encode(), BAD),
    ("zstd", "zstd", MARK.encode(), BAD),
    ("two of them", "gzip, gzip", gzip.compress(gzip.compress(MARK.encode(), mtime=0), mtime=0), BAD),
    ("no gzip at all", "gzip", MARK.encode(), BAD),
    ("gzip cut short", "gzip", gzipped(1000)[:-5], BAD),
    ("something behind the gzip", "gzip", gzipped(10) + MARK.encode(), BAD),
    ("raw deflate", "deflate", zlib.compress(b'{"model":"m"}')[2:-4], BAD),
    ("bad JSON inside", "gzip", gzip.compress(MARK.encode(), mtime=0), BAD),
    ("bomb", "gzip", gzipped(200 * LIMIT_BYTES), TOO_LARGE),
    ("bomb, deflated", "deflate", zlib.compress(bytes(200 * LIMIT_BYTES)), TOO_LARGE),
]


@pytest.mark.parametrize(("coding", "body", "row"), [case[1:] for case in ENCODED], ids=[case[0] for case in ENCODED])
async def test_bad_content_encodings_are_refused(coding: str, body: bytes, row: Row) -> None:
    assert len(body) < LIMIT_BYTES
    async with limited() as (upstream, proxy, client):
        answer = await client.ask("POST", CHAT, body, headers=(("Content-Encoding", coding),))
        assert_refused(answer, row)
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy)


def limited(**server: float) -> AbstractAsyncContextManager[Stage]:
    return stage(server={"max_request_bytes": LIMIT_BYTES, **server})


def head(*headers: str, path: str = CHAT) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *headers, "", "")
    return "\r\n".join(lines).encode()


async def test_an_announced_oversize_is_refused_before_the_body_is_sent() -> None:
    async with limited() as (upstream, proxy, client):
        client.writer.write(head(f"Content-Length: {LIMIT_BYTES + 1}"))
        assert_refused(await client.answer(), TOO_LARGE)
        await assert_serves(proxy, upstream)
        # a client that sends its body all the same keeps its connection
        client.writer.write(MARK.encode() + b"x" * (LIMIT_BYTES + 1 - len(MARK)))
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy)
    assert proxy.exchanges[0]["received_bytes"] == 0


async def test_the_limit_itself_is_allowed() -> None:
    body = b'{"model":"m","user":"' + b"a" * (LIMIT_BYTES - 23) + b'"}'
    assert len(body) == LIMIT_BYTES
    async with limited() as (upstream, _, client):
        assert (await client.ask("POST", CHAT, body)).status == 200
        client.writer.write(head("Transfer-Encoding: chunked") + chunk(body) + chunk(b""))
        assert (await client.answer()).status == 200
        assert [request.partition(b"\r\n\r\n")[2] for request in upstream.requests] == [body, body]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_an_oversize_by_chunks_is_refused_when_it_becomes_one() -> None:
    async with limited() as (upstream, proxy, client):
        client.writer.write(head("Transfer-Encoding: chunked"))
        client.writer.write(chunk(MARK.encode() * 1000) * (LIMIT_BYTES // len(MARK) // 1000 + 1))
        assert_refused(await client.answer(), TOO_LARGE)
        client.writer.write(chunk(b""))
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy)


async def test_an_oversize_by_chunks_that_arrives_at_once_is_refused() -> None:
    async with stage(server={"max_request_bytes": 1000}) as (upstream, proxy, client):
        client.writer.write(head("Transfer-Encoding: chunked") + chunk(MARK.encode() * 1000) + chunk(b""))
        assert_refused(await client.answer(), TOO_LARGE)
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy)


FRAMINGS = {
    "by length": ("Content-Length: 500", b'{"model":"m'),
    "by chunks": ("Transfer-Encoding: chunked", b"5\r\n{"),
}


@pytest.mark.parametrize(("framing", "part"), FRAMINGS.values(), ids=FRAMINGS)
async def test_a_body_that_stops_is_given_up_in_time(framing: str, part: bytes) -> None:
    async with limited(request_read_timeout=0.1) as (upstream, proxy, client):
        client.writer.write(head(framing) + part)
        answer = await client.answer()
        assert_refused(answer, Row(408, "request_timeout"))
        assert answer.header("connection") == "close"
        assert await client.reader.read() == b""
        await assert_serves(proxy, upstream)
        assert upstream.requests[0].endswith(b"}")


UPLOAD = "/v1/audio/transcriptions"
FORM_TYPE = ("Content-Type", "multipart/form-data; boundary=b")
FORM = (": ".join(FORM_TYPE), "Transfer-Encoding: chunked")
MODEL_PART = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b\r\n'


async def test_an_upload_that_stops_is_given_up_in_time() -> None:
    async with limited(request_read_timeout=0.1) as (upstream, proxy, client):
        client.writer.write(head(*FORM, path=UPLOAD) + chunk(MODEL_PART))
        assert_refused(await client.answer(), Row(408, "request_timeout"))
        await assert_serves(proxy, upstream)
        assert (await proxy.exchange())["phase"] == "forward"
        assert len(upstream.requests) == 1, "the upstream took half an upload for a whole one"


SMALL_PART = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'


async def test_an_upload_of_many_small_parts_is_refused_before_and_after_its_model() -> None:
    async with limited() as (upstream, proxy, client):
        answer = await client.ask("POST", UPLOAD, SMALL_PART * 2000, headers=(FORM_TYPE,))
        assert_refused(answer, BAD)
        assert upstream.requests == []
        answer = await client.ask("POST", UPLOAD, MODEL_PART[:-5] + SMALL_PART * 2000, headers=(FORM_TYPE,))
        assert_refused(answer, BAD)
        await assert_serves(proxy, upstream)
        assert not any(b"whisper" in request and request.endswith(b"--b--\r\n") for request in upstream.requests)


URLENCODED = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("content_type", ["audio/wav", "text/plain", URLENCODED])
async def test_an_inference_request_of_another_type_is_told_what_to_send(content_type: str) -> None:
    async with stage() as (upstream, proxy, client):
        for path in (UPLOAD, "/v1/moderations", "/v1/images/generations"):
            answer = await client.ask("POST", path, f"model={MARK}".encode(), headers=(("Content-Type", content_type),))
            assert_refused(answer, BAD)
            assert "application/json or multipart/form-data" in answer.error["message"]
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy)


async def test_two_content_types_are_one_too_many() -> None:
    async with stage() as (upstream, proxy, client):
        body = b'{"model":"m"}'
        types = ("Content-Type: application/json", f"Content-Type: {URLENCODED}", f"Content-Length: {len(body)}")
        client.writer.write(head(*types, path="/v1/moderations") + body)
        assert (await client.answer()).status == 400
        assert upstream.requests == []
        await assert_serves(proxy, upstream)


BROKEN = {"no size": b"zz\r\n", "longer": b"1\r\nzq7\r\n", "negative": b"-1\r\n", "huge": b"f" * 17 + b"\r\n"}


async def in_phase(proxy: Running, phase: str) -> None:
    await until(lambda: proxy.sample("sluice_exchanges_in_flight", phase=phase) == 1, f"an exchange in {phase}")


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_chunks_that_break_in_a_later_packet_are_answered_at_once(
    broken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the connection is closed at once: no timer that would do it later ends within the test."""
    monkeypatch.setattr(connection, "_LINGER_S", 2 * LONG_S)
    async with limited(request_read_timeout=2 * LONG_S) as (upstream, proxy, _):
        for path, headers, first, phase in ((CHAT, FORM[1:], b"{", "admit"), (UPLOAD, FORM, MODEL_PART, "forward")):
            async with await RecordingClient.connect(proxy.port) as client:
                client.writer.write(head(*headers, path=path) + chunk(first))
                await in_phase(proxy, phase)
                client.writer.write(broken)
                async with asyncio.timeout(LONG_S):
                    assert_refused(await client.answer(), BAD)
                    assert await client.reader.read() == b"", "nothing may follow on a connection out of step"
            await assert_serves(proxy, upstream)
        assert len(upstream.requests) == 2
        await proxy.exchange(4)
        assert [line["phase"] for line in proxy.exchanges if line["status"] == 400] == ["admit", "forward"]


async def test_a_second_model_late_in_an_upload_ends_the_exchange() -> None:
    async with limited() as (upstream, proxy, client):
        late = b'Content-Disposition: form-data; name="model"\r\n\r\nother\r\n--b--\r\n'
        client.writer.write(head(*FORM, path=UPLOAD) + chunk(MODEL_PART))
        await in_phase(proxy, "forward")
        client.writer.write(chunk(late) + chunk(b""))
        assert_refused(await client.answer(), Row(400, param="model"))
        assert upstream.requests == []


async def test_an_upstream_that_judges_a_body_is_heard_as_it_is() -> None:
    """What Sluice has no opinion on passes, and the upstream's own refusal comes back."""
    refusal = response(b'{"error":{"message":"No.","type":"invalid_request_error"}}', status=422)
    async with stage(lambda _: refusal) as (_, _, client):
        answer = await client.ask("POST", CHAT, {**GOOD, "messages": 17, "temperature": "hot"})
        assert (answer.status, answer.body) == (422, refusal.partition(b"\r\n\r\n")[2])
