"""Hostile HTTP: refused in OpenAI's envelope, no second request reaches an upstream, the process goes on."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from tests.fakes.client import RecordingClient
from tests.fakes.refusals import MARK, Row, assert_not_logged, assert_refused, assert_serves
from tests.fakes.running import KEY
from tests.fakes.stage import stage
from tests.fakes.waiting import LONG_S

BAD = Row(400)
BODY = f'{{"model":"gpt-test","messages":[],"user":"{MARK}"}}'.encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
POST = b"POST /v1/chat/completions HTTP/1.1"
HOST = b"Host: localhost"
HIDDEN = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nX: {MARK}\r\n\r\n".encode()


def request(*headers: bytes, first: bytes = POST, host: bytes | None = HOST, body: bytes = b"") -> bytes:
    lines = [first, *([host] if host else []), b"Authorization: Bearer " + KEY.encode(), *headers, b"", b""]
    return b"\r\n".join(lines) + body


def with_length(*headers: bytes, first: bytes = POST, host: bytes | None = HOST) -> bytes:
    return request(LENGTH, *headers, first=first, host=host, body=BODY)


def line(method: bytes = b"POST", target: bytes = b"/v1/chat/completions", version: bytes = b"HTTP/1.1") -> bytes:
    return with_length(first=b" ".join((method, target, version)))


M = MARK.encode()
# refused by whoever reads the head: the connection has lost its step and is closed
HEADS: dict[str, bytes] = {
    "a header of 65 KB": with_length(b"X-A: " + M * 7300),
    "a URL of 65 KB": line(target=b"/v1/models?" + M * 7300),
    "200 headers": with_length(*(b"X-%d: %b" % (number, M) for number in range(200))),
    "NUL in a value": with_length(b"X-A: " + M + b"\0"),
    "NUL in a name": with_length(M + b"\0: a"),
    "lines ended by LF": with_length(b"X-A: " + M).replace(b"\r\n", b"\n"),
    "LF in a value": with_length(b"X-A: a\nX-B: " + M),
    "CR in a value": with_length(b"X-A: a\rX-B: " + M),
    "a folded line": with_length(b"X-A: a\r\n " + M),
    "a header without a colon": with_length(M),
    "a header without a name": with_length(b": " + M),
    "space before the colon": request(b"Transfer-Encoding : chunked", LENGTH, body=BODY),
    "no Host": with_length(host=None),
    "two Hosts": with_length(b"Host: " + M),
    "two lengths": with_length(LENGTH),
    "two different lengths": with_length(b"Content-Length: 1"),
    "a list of lengths": request(b"Content-Length: %d, %d" % (len(BODY), len(BODY)), body=BODY),
    "a length with a sign": request(b"Content-Length: +%d" % len(BODY), body=BODY),
    "a negative length": request(b"Content-Length: -1", body=BODY),
    "a length in hex": request(b"Content-Length: 0x20", body=BODY),
    "a length beyond 64 bits": request(b"Content-Length: 99999999999999999999999", body=BODY),
    "length and chunks": request(LENGTH, CHUNKED, body=IN_CHUNKS),
    "chunks and length": request(CHUNKED, LENGTH, body=IN_CHUNKS),
    "coding identity": request(b"Transfer-Encoding: identity", body=BODY),
    "coding identity and length": with_length(b"Transfer-Encoding: identity"),
    "coding gzip": request(b"Transfer-Encoding: gzip", body=IN_CHUNKS),
    "coding xchunked": request(b"Transfer-Encoding: xchunked", body=IN_CHUNKS),
    "coding behind a vertical tab": request(b"Transfer-Encoding: \x0bchunked", body=IN_CHUNKS),
    "chunked twice": request(CHUNKED, CHUNKED, body=IN_CHUNKS),
    "a method nobody knows": line(b"BREW"),
    "a method in lower case": line(b"post"),
    "space in the target": line(target=b"/v1/models/" + M + b" x"),
    "a target not in ASCII": line(target=b"/v1/models/\xc3\xa9"),
    "a target without a path": line(target=b"example.org:80"),
    "an absolute target that is none": line(target=b"http://[::1/v1/models"),
    "an absolute target with a wild port": line(target=b"http://a:99999999/v1/models"),
    "HTTP/1.2": line(version=b"HTTP/1.2"),
    "HTTP/3.0": line(version=b"HTTP/3.0"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS handshake": bytes.fromhex("16030100c8010000c40303") + M * 21,
    "nothing but NULs": bytes(64) + b"\r\n\r\n",
    "a chunk without a size": request(CHUNKED, body=b"zz\r\n" + BODY),
    "a chunk longer than it says": request(CHUNKED, body=b"1\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunks ended by LF": request(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b"\n")),
    "a chunk beyond 64 bits": request(CHUNKED, body=b"1000000000000000f\r\n" + BODY),
    "CL.TE": request(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nX" + HIDDEN),
    "TE.CL": request(CHUNKED, b"Content-Length: 4", body=b"5c\r\n" + HIDDEN + b"0\r\n\r\n"),
    "TE.TE": request(CHUNKED, b"Transfer-Encoding: x", body=b"0\r\n\r\n" + HIDDEN),
}


@pytest.mark.parametrize("sent", HEADS.values(), ids=HEADS)
async def test_broken_requests_are_refused_and_the_connection_closed(sent: bytes) -> None:
    async with stage(log_level="debug") as (upstream, proxy, client):
        client.writer.write(sent)
        async with asyncio.timeout(LONG_S):
            assert_refused(await client.answer(), BAD)
            assert await client.reader.read() == b""
        assert upstream.requests == []
        await assert_serves(proxy, upstream)
    assert_not_logged(proxy, KEY)
    malformed = [entry for entry in proxy.lines if entry["event"] == "malformed request"]
    assert [list(entry) for entry in malformed] == [["timestamp", "level", "event", "id", "client", "fault"]]


# refused by Sluice, with what is known of the request in the log
REQUESTS: dict[str, tuple[bytes, Row]] = {
    "coding gzip, chunked": (request(b"Transfer-Encoding: gzip, chunked", body=IN_CHUNKS), BAD),
    "chunks in HTTP/1.0": (request(CHUNKED, first=POST[:-1] + b"0", body=IN_CHUNKS), BAD),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", BAD),
    "HTTP/2.0 in the form of 1.1": (line(version=b"HTTP/2.0"), BAD),
    "a WebSocket": (
        request(
            b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + M
        ),
        BAD,
    ),
    "a WebSocket with a body": (with_length(b"Upgrade: websocket", b"Connection: upgrade"), BAD),
    "h2c": (with_length(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk"), BAD),
    "CONNECT": (request(first=b"CONNECT localhost:80 HTTP/1.1"), Row(405, "method_not_supported")),
    "TRACE": (request(first=b"TRACE /v1/models HTTP/1.1"), Row(405, "method_not_supported")),
    "an unknown expectation": (with_length(b"Expect: " + M), Row(417)),
    "two expectations": (with_length(b"Expect: 100-continue, " + M), Row(417)),
}


@pytest.mark.parametrize(("sent", "row"), REQUESTS.values(), ids=REQUESTS)
async def test_what_no_endpoint_takes_is_refused(sent: bytes, row: Row) -> None:
    async with stage(log_level="debug") as (upstream, proxy, client):
        client.writer.write(sent)
        assert_refused(await client.answer(), row)
        assert upstream.requests == []
        assert (await proxy.exchange())["status"] == row.status
        await assert_serves(proxy, upstream)
    assert_not_logged(proxy, KEY)


async def test_a_hidden_request_is_one_of_its_own_with_its_own_key() -> None:
    """Behind a body that ends where it says, more bytes are the next request; they inherit nothing."""
    hidden = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n\r\n" + BODY
    async with stage() as (upstream, _, client):
        client.writer.write(with_length() + hidden)
        assert (await client.answer()).status == 200
        assert_refused(await client.answer(), Row(401, "invalid_api_key"))
        assert len(upstream.requests) == 1


async def test_what_a_connection_header_names_does_not_unframe_the_upstream_request() -> None:
    async with stage() as (upstream, _, client):
        client.writer.write(with_length(b"Connection: content-length, host, authorization"))
        assert (await client.answer()).status == 200
        assert len(upstream.requests) == 1
        head = upstream.requests[0].lower()
        assert b"\r\ncontent-length: %d\r\n" % len(BODY) in head
        assert b"\r\nhost: 127.0.0.1" in head
        assert b"\r\nauthorization: bearer sk-upstream" in head


async def test_pipelined_requests_are_answered_in_order() -> None:
    def numbered(number: int) -> bytes:
        body = b'{"model":"m%d"}' % number
        return request(b"Content-Length: %d" % len(body), body=body)

    async with stage() as (upstream, _, client):
        bad = request(b"Content-Length: 2", body=b"{}")
        client.writer.write(b"".join(numbered(number) for number in range(40)) + bad + numbered(40))
        answers = [await client.answer() for _ in range(42)]
        assert [answer.status for answer in answers] == [200] * 40 + [400, 200]
        assert [body["model"] for body in upstream.bodies] == [f"m{number}" for number in range(41)]


@pytest.mark.parametrize("target", [b"http://other.example/v1/chat/completions", b"https://h:1/v1/chat/completions"])
async def test_an_absolute_target_is_served_by_its_path(target: bytes) -> None:
    async with stage() as (upstream, _, client):
        client.writer.write(line(target=target))
        assert (await client.answer()).status == 200
        assert upstream.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_http_1_0_clients_get_answers_that_end_with_the_connection() -> None:
    async with stage() as (_, _, client):
        client.writer.write(with_length(first=POST[:-1] + b"0"))
        plain = await client.answer()
        assert (plain.status, plain.whole, await client.reader.read()) == (200, True, b"")


async def test_http_1_0_clients_get_streams_without_chunks() -> None:
    body = b'{"model":"m","stream":true}'
    async with stage() as (_, _, client):
        client.writer.write(request(b"Content-Length: %d" % len(body), first=POST[:-1] + b"0", body=body))
        answer = await client.answer()
        assert answer.header("transfer-encoding") is None
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_continue_comes_only_when_the_body_is_wanted() -> None:
    async with stage(server={"max_request_bytes": 1000}) as (upstream, proxy, client):
        client.writer.write(request(LENGTH, b"Expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(BODY)
        assert (await client.answer()).status == 200
        unwanted = {
            b"Content-Length: 1001": (KEY, Row(413, "request_too_large")),
            LENGTH: ("sk-wrong", Row(401, "invalid_api_key")),
        }
        for length, (key, row) in unwanted.items():
            async with await RecordingClient.connect(proxy.port) as other:
                other.writer.write(request(length, b"Expect: 100-continue").replace(KEY.encode(), key.encode()))
                assert (await other.reader.readexactly(12)) == b"HTTP/1.1 %d" % row.status
        assert len(upstream.requests) == 1


async def test_a_request_that_comes_back_to_the_proxy_is_refused() -> None:
    """An upstream that points at the proxy itself: the loop ends at the first turn."""
    async with stage() as (upstream, proxy, client):
        pool = proxy.worker.app.upstreams["up"].pool
        pool.origin = replace(pool.origin, port=proxy.port)
        answer = await client.ask("POST", "/v1/chat/completions", {"model": "m"})
        assert (answer.status, answer.error["code"]) == (502, "upstream_protocol_error")
        assert "came back" in answer.error["message"]
        await proxy.exchange(2)
        assert [entry["status"] for entry in proxy.exchanges] == [502, 502]
        assert upstream.requests == []


async def test_one_connection_too_many_is_told_so() -> None:
    async with stage(server={"max_connections": 2}) as (upstream, proxy, first):
        await assert_serves(proxy, upstream, first)
        second = await RecordingClient.connect(proxy.port)
        await assert_serves(proxy, upstream, second)
        # its request is there before it is refused: a careless close would reset the connection, and lose the answer
        early = socket.create_connection(("127.0.0.1", proxy.port))
        early.sendall(with_length())
        async with RecordingClient(*await asyncio.open_connection(sock=early)) as third:
            answer = await third.answer()
            assert_refused(answer, Row(503, "too_many_connections", type="server_error"))
            assert (answer.header("retry-after"), answer.header("retry-after-ms")) == ("1", "1000")
            assert answer.header("connection") == "close"
            assert await third.reader.read() == b""
        await assert_serves(proxy, upstream, first)
        await second.close()
        await until_serves(proxy.port)
    assert_not_logged(proxy, KEY)


async def until_serves(port: int) -> None:
    """A place is free again as soon as the proxy has seen the connection end."""
    async with asyncio.timeout(LONG_S):
        while True:
            async with await RecordingClient.connect(port) as client:
                if (await client.ask("GET", "/v1/models")).status == 200:
                    return
