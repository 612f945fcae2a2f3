"""Whatever is ambiguous, broken or too large in a response is an error at once."""

from __future__ import annotations

import pytest

from proxy.core.errors import ProxyError
from proxy.upstream.framing import MAX_FRAMING_BYTES, MAX_HEAD_BYTES, ResponseReader
from tests.fakes.reading import CHUNKED, LENGTH_5, OK, bytewise, read

MALFORMED_HEADS = [
    b"HTTP/1.1 200 OK\nContent-Length: 5\n\n",
    OK + b"A: b\nContent-Length: 5\r\n\r\n",
    OK + b"A: b\r\n folded\r\nContent-Length: 5\r\n\r\n",
    OK + b"A: b\0c\r\n\r\n",
    OK + b"A: b\rc\r\n\r\n",
    OK + b"A: b\x01c\r\n\r\n",
    OK + b"A : b\r\n\r\n",
    OK + b": b\r\n\r\n",
    OK + b"no colon\r\n\r\n",
    b"HTTP/1.1 200 O\0K\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"HTTP/0.9 200 OK\r\n\r\n",
    b"RTSP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 099 No\r\n\r\n",
    b"HTTP/1.1 600 No\r\n\r\n",
    b"HTTP/1.1 20 No\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    OK + b"Content-Length: 5, 5\r\n\r\n",
    OK + b"Content-Length: -5\r\n\r\n",
    OK + b"Content-Length: +5\r\n\r\n",
    OK + b"Content-Length: 0x5\r\n\r\n",
    OK + b"Content-Length: 5 5\r\n\r\n",
    OK + b"Content-Length:\r\n\r\n",
    OK + b"Content-Length: 9999999999999999999\r\n\r\n",
    OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    OK + b"Transfer-Encoding: identity\r\n\r\n",
    OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    OK + b"Transfer-Encoding: xchunked\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@pytest.mark.parametrize("head", MALFORMED_HEADS)
def test_a_malformed_head_is_an_error_at_once(head: bytes) -> None:
    assert read([head]).state == "upstream_protocol_error"
    assert read(bytewise(head)).state == "upstream_protocol_error"


@pytest.mark.parametrize(
    "chunks",
    [
        *(b"x\r\n", b"-5\r\n", b"+5\r\n", b"0x5\r\n", b" 5\r\n", b"5 \r\n", b"5\n", b"\r\n5\r\n", b"g\r\n"),
        *(b"5\r\nhelloX", b"5\r\nhello\n", b"10000000000000000\r\n"),
        *(b"0\r\nA b\r\n\r\n", b"0\r\n folded: x\r\n\r\n", b"0\r\nA: b\nC: d\r\n\r\n"),
    ],
)
def test_a_malformed_chunk_is_an_error_at_once_behind_the_bytes_before_it(chunks: bytes) -> None:
    wire = CHUNKED + b"3\r\nabc\r\n" + chunks
    for pieces in ([wire], bytewise(wire), [CHUNKED, wire[len(CHUNKED) :]]):
        reading = read(pieces)
        assert reading.state == "upstream_protocol_error"
        assert reading.body.startswith(b"abc")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_some_responses_have_no_body_whatever_they_say(status: bytes) -> None:
    wire = b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n"
    assert read(bytewise(wire)).state == "complete"
    assert read([wire + b"hello"]).excess
    for framing in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"A: b"):
        assert read([OK + framing + b"\r\n\r\n"], bodiless=True).state == "complete"


@pytest.mark.parametrize("head", [OK + b"A: b\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_body_without_framing_ends_with_the_connection(head: bytes) -> None:
    reader = ResponseReader()
    reader.feed(head + b"some")
    reader.feed(b"thing")
    assert reader.close_delimited
    assert not reader.complete
    with pytest.raises(ProxyError):
        reader.end(reset=True)
    reader.end()
    assert reader.complete
    assert not reader.reusable
    assert reader.take() == b"something"


@pytest.mark.parametrize(
    ("head", "reusable", "keep_alive_s"),
    [
        (b"HTTP/1.1 200 OK\r\n", True, None),
        (b"HTTP/1.1 200\r\n", True, None),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5, max=100\r\n", True, 5),
        (b"HTTP/1.1 200 OK\r\nkeep-alive: max=3,TIMEOUT=72\r\n", True, 72),
        (b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=x, xtimeout=4\r\n", True, None),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False, None),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\n", False, None),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\n", False, None),
        (b"HTTP/1.0 200 OK\r\n", False, None),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", False, None),
    ],
)
def test_what_a_head_says_about_the_connection(head: bytes, keep_alive_s: int | None, *, reusable: bool) -> None:
    reader = ResponseReader()
    reader.feed(head + b"Content-Length: 5\r\n\r\nhell")
    assert not reader.reusable
    reader.feed(b"o")
    assert reader.reusable is reusable
    assert reader.keep_alive_s == keep_alive_s
    reader.feed(b"\r\n")
    assert not reader.reusable


@pytest.mark.parametrize(
    "wire",
    [
        OK + b"A: " + b"b" * MAX_HEAD_BYTES,
        OK + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        OK + b"A: b\r\n" * 257 + b"\r\n",
        b"HTTP/1.1 103 Early\r\n\r\n" * 17,
        CHUNKED + b"5;" + b"x" * (MAX_FRAMING_BYTES + 1),
        CHUNKED + b"0\r\nA: " + b"x" * (MAX_FRAMING_BYTES + 1),
        CHUNKED + b"0\r\n" + b"A: b\r\n" * (MAX_FRAMING_BYTES // 6 + 1),
    ],
)
def test_what_is_not_body_is_bounded(wire: bytes) -> None:
    assert read([wire[index : index + 4096] for index in range(0, len(wire), 4096)]).state == "upstream_protocol_error"


def test_heads_up_to_the_bounds_are_read() -> None:
    assert read([OK + b"A: b\r\n" * 255 + b"Content-Length: 0\r\n\r\n"]).state == "complete"
    assert read([b"HTTP/1.1 103 Early\r\n\r\n" * 16 + LENGTH_5 + b"hello"]).body == b"hello"
    long_extension = CHUNKED + b"5;" + b"x" * (MAX_FRAMING_BYTES - 10) + b"\r\nhello\r\n0\r\n\r\n"
    assert (
        read([long_extension[index : index + 4096] for index in range(0, len(long_extension), 4096)]).body == b"hello"
    )


def test_a_trailer_is_no_header() -> None:
    reading = read([CHUNKED + b"0\r\nSet-Cookie: a=b\r\n\r\n"])
    assert reading.head.headers == [(b"Transfer-Encoding", b"chunked")]  # type: ignore[attr-defined]
