"""A response is cut anywhere and read the same; whatever is ambiguous, broken or too large is an error at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.errors import UPSTREAM_PROTOCOL_ERROR, ProxyError
from proxy.upstream.framing import MAX_FRAMING_BYTES, MAX_HEAD_BYTES, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH_5 = OK + b"Content-Length: 5\r\n\r\n"


@dataclass
class Reading:
    """What a reader made of some bytes: "upstream_protocol_error", "complete" or "waiting", and what it had by then."""

    state: str
    body: bytes
    excess: bool
    head: object


def read(pieces: list[bytes], *, bodiless: bool = False, take: bool = False) -> Reading:
    reader = ResponseReader(bodiless=bodiless)
    body, state = b"", "waiting"
    try:
        for piece in pieces:
            reader.feed(memoryview(piece))
            if take:
                body += reader.take()
    except ProxyError as error:
        state = error.kind.outcome
    body += reader.take()
    assert reader.received_bytes == len(body)
    if reader.complete:
        state = "complete"
    return Reading(state, body, reader.excess, reader.head)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


cuts = st.lists(st.integers(0, 4000), max_size=12)
tokens = st.from_regex(rb"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True)
values = st.from_regex(rb"(?:[!-~\x80-\xff](?:[ -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True)
reserved = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"}
extra_headers = st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in reserved), values), max_size=6)


@dataclass
class Response:
    """A well-formed response and what it says."""

    wire: bytes
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    interim: bytes = b""
    cut_at: list[int] = field(default_factory=list)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    wire = b""
    for chunk in chunks:
        size = b"%x" % len(chunk)
        size = size.upper() if draw(st.booleans()) else size
        extension = draw(st.sampled_from([b"", b";a", b";name=value", b';q="quoted; text"']))
        wire += b"0" * draw(st.integers(0, 2)) + size + extension + b"\r\n" + chunk + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"Trailer: x\r\n", b"A: b\r\nDigest: sha-256=:abc:\r\n"]))
    return wire + b"0\r\n" + trailers + b"\r\n", b"".join(chunks)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    """With Content-Length or chunked: those that have an end of their own."""
    status = draw(st.sampled_from([200, 201, 400, 404, 429, 500, 503, 529]))
    headers = draw(extra_headers)
    if draw(st.booleans()):
        wire, body = draw(chunked_bodies())
        framing = (draw(st.sampled_from([b"Transfer-Encoding", b"transfer-encoding"])), b"chunked")
    else:
        wire = body = draw(st.binary(max_size=200))
        framing = (b"content-length", b"%d" % len(body))
    headers.insert(draw(st.integers(0, len(headers))), framing)
    interim = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 2])
    )
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    head = b"HTTP/1.1 %d Because\r\n" % status + lines + b"\r\n"
    return Response(interim + head + wire, status, headers, body, interim)


@given(response=responses(), places=cuts, take=st.booleans())
def test_a_response_reads_the_same_however_it_is_cut(response: Response, places: list[int], *, take: bool) -> None:
    whole = read([response.wire])
    assert (whole.state, whole.body, whole.excess) == ("complete", response.body, False)
    head = whole.head
    assert (head.status, head.reason, head.headers) == (response.status, b"Because", response.headers)  # type: ignore[attr-defined]
    assert read(cut(response.wire, places), take=take) == whole
    assert read(bytewise(response.wire), take=take) == whole


@given(
    responses(), st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"x", b"0\r\n\r\n", LENGTH_5 + b"hello"]), cuts
)
def test_bytes_behind_a_response_never_pass_unnoticed(response: Response, behind: bytes, places: list[int]) -> None:
    expected = read([response.wire])
    expected.excess = True
    assert read([response.wire + behind]) == expected
    assert read(cut(response.wire + behind, places)) == expected
    assert read(bytewise(response.wire + behind)) == expected
    assert read([response.wire, behind]) == expected


@given(responses(), st.data())
def test_a_response_without_its_last_bytes_is_never_complete(response: Response, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(response.wire) - 1))
    reader = ResponseReader()
    if kept:
        reader.feed(response.wire[:kept])
    assert not reader.complete
    for reset in (False, True):
        with pytest.raises(ProxyError) as raised:
            reader.end(reset=reset)
        assert raised.value.kind is UPSTREAM_PROTOCOL_ERROR
    assert response.body.startswith(reader.take())


def naive(wire: bytes) -> bytes | None:
    """The body, if the bytes start with a whole response framed beyond doubt; slow and simple."""
    head, end, rest = wire.partition(b"\r\n\r\n")
    if not end:
        return None
    lines = head.split(b"\r\n")
    if lines[0][9:10] == b"1":
        return naive(rest)
    headers = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines[1:])]
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if lines[0][9:12] in {b"204", b"304"}:
        return b""
    if codings:
        return naive_chunks(rest) if codings == [b"chunked"] and not lengths else None
    if len(lengths) != 1 or not lengths[0].isdigit() or len(rest) < int(lengths[0]):
        return None
    return rest[: int(lengths[0])]


def naive_chunks(rest: bytes) -> bytes | None:
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        digits = line.partition(b";")[0]
        if not end or not digits or digits.strip(b"0123456789abcdefABCDEF"):
            return None
        size = int(digits, 16)
        if size == 0:
            while line and end:
                line, end, rest = rest.partition(b"\r\n")
            return body if end else None
        if rest[size : size + 2] != b"\r\n":
            return None
        body, rest = body + rest[:size], rest[size + 2 :]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    wire = draw(responses()).wire
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(wire)))
        removed = draw(st.integers(0, 3))
        wire = (
            wire[:place]
            + draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b":", b"0", b"\0", b"A", b"-"]))
            + (wire[place + removed :])
        )
    return wire


@given(damaged() | st.binary(max_size=300) | st.binary(max_size=60).map(CHUNKED.__add__), cuts)
@example(CHUNKED + b"5\r\nhelloX0\r\n\r\n", [])
@example(CHUNKED + b"5\r\nhello\n0\r\n\r\n", [])
@example(LENGTH_5.replace(b"\r\n", b"\n") + b"hello", [])
def test_damage_reads_the_same_however_it_is_cut_and_is_never_framed_wrongly(wire: bytes, places: list[int]) -> None:
    whole = read([wire] if wire else [])
    assert read(cut(wire, places)) == whole
    assert read(bytewise(wire)) == whole
    if whole.state == "complete":
        assert whole.body == naive(wire)


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
