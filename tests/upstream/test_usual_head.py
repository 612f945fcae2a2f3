"""A usual head, read by a few calls, is read as the general way reads it; what is not usual is left to that."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.errors import ProxyError
from proxy.upstream import framing
from proxy.upstream.framing import ResponseReader
from proxy.upstream.usual_head import usual_head

_LINES = st.sampled_from([
    b"Content-Type: text/event-stream", b"content-type:text/plain", b"Content-Length: 5", b"content-length: 0",
    b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length:5", b"Content-Length: " + b"1" * 19,
    b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding: gzip, chunked",
    b"Connection: keep-alive", b"Connection: Keep-Alive", b"Connection: close", b"connection: keep-alive, x-a",
    b"Keep-Alive: timeout=5", b"Proxy-Connection: close", b"Upgrade: h2c", b"Connection: upgrade",
    b"X-A: b ", b"X-A:  b",    b"X-A: b\tc", b"X-A:", b"X-A : b", b" folded: a", b"X-A: \xe9", b"X-A: a\rb",
    b"X-A: a\nb",    b"X\x00A: b", b"no colon", b"colonless",
    b"X-A:b", b"X-A: \tb", b"X-A: b\x0b", b"X-A: ", b"X-A: b:  c",
    b"X-A: Content-Length: 5", b"Set-Cookie: a=b; c", b"A(b): c", b": c", b"", b"X-A: b\x7f",
    b"!#$%&'*+-.^_`|~09Az: ~",
])  # fmt: skip
_FIRST = st.sampled_from([
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 500 ",    b"HTTP/1.1 200 \xe9", b"HTTP/1.1  200 OK", b"HTTP/1.1 2000",
    b"http/1.1 200 OK", b"HTTP/1.1 100 Continue",
])  # fmt: skip
_BODIES = st.sampled_from(
    [b"", b"hello", b"hell", b"hello!", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhel", b"x\r\n", b"\r\n"]
)


def _seen(pieces: list[bytes], *, bodiless: bool) -> list[object]:
    """All that can be told of a reader that was fed so."""
    reader = ResponseReader(bodiless=bodiless)
    seen: list[object] = []
    for piece in pieces:
        try:
            reader.feed(memoryview(piece))
        except ProxyError as error:
            seen.append((error.kind, error.message))
        head = reader.head
        seen.append(None if head is None else (head.status, head.reason, head.headers, head.content_length))
        seen += [reader.complete, reader.excess, reader.close_delimited, reader.reusable, reader.keep_alive_s]
        seen += [reader.take(), reader.received_bytes, reader.started]
    return seen


@given(_FIRST, st.lists(_LINES, max_size=5), _BODIES, st.lists(_BODIES, max_size=2), st.booleans())
@example(b"HTTP/1.1 200 OK", [b"Content-Length: 5"], b"hello", [b""], False)
@example(
    b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked", b"Connection: keep-alive"], b"5\r\nhel", [b"lo\r\n"], False
)
@example(b"HTTP/1.1 200 OK", [b"X-A: b"] * 200 + [b"Content-Length: 5"], b"hello", [], False)
@example(b"HTTP/1.1 200 OK", [b"X-A: b"] * 300 + [b"Content-Length: 5"], b"hello", [], False)
@example(b"HTTP/1.1 200 OK", [b"X-A: " + b"b" * 70_000, b"Content-Length: 5"], b"hello", [], False)
def test_the_short_way_reads_what_the_general_way_reads(
    first: bytes, lines: list[bytes], body: bytes, more: list[bytes], bodiless: bool
) -> None:
    wire = b"".join(line + b"\r\n" for line in [first, *lines]) + b"\r\n" + body
    pieces = [wire, *(piece for piece in more if piece)]
    seen = _seen(pieces, bodiless=bodiless)
    with mock.patch.object(framing, "usual_head", return_value=None):
        assert seen == _seen(pieces, bodiless=bodiless)


@pytest.mark.parametrize(
    ("wire", "length", "rest"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\nX-A: b c\r\n\r\nhello", 5, b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n5\r\n", None, b"5\r\n"),
        (b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length:5 \r\n\r\nhello", 5, b"hello"),
        (b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", 0, b""),
    ],
)
def test_what_upstreams_send_is_usual(wire: bytes, length: int | None, rest: bytes) -> None:
    usual = usual_head(wire)
    assert usual is not None
    assert usual[2:] == (length, rest)
