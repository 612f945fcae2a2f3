"""A response is cut anywhere and read the same, and never framed wrongly, however it is damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import ascii_letters, digits

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.errors import UPSTREAM_PROTOCOL_ERROR, ProxyError
from proxy.upstream.framing import ResponseReader
from tests.fakes.reading import CHUNKED, LENGTH_5, bytewise, cut, read

cuts = st.lists(st.integers(0, 4000), max_size=12)
# of plain texts: one from a regular expression takes ten times as long to draw
tokens = st.tuples(st.sampled_from(ascii_letters), st.text(ascii_letters + digits + "-", max_size=12)).map(
    lambda parts: "".join(parts).encode()
)
values = st.text("".join(map(chr, (*range(0x20, 0x7F), *range(0x80, 0x100)))), max_size=22).map(
    lambda text: text.strip(" ").encode("latin-1")
)
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


@given(
    st.lists(
        st.binary(min_size=1, max_size=40).map(lambda body: b"%x\r\n%b\r\n" % (len(body), body))
        | st.sampled_from([b"5;a=b\r\nhello\r\n", b"005\r\nhello\r\n", b"A\r\n0123456789\r\n", b"0\r\n\r\n", b"0\r\n"])
        | st.sampled_from(
            [b"5\r\nhello", b"\r\n", b"5\r", b"\n", b"hello\r\n", b"5\r\n\r\n", b"3\r\n\r\n\r\n\r\n", b"g\r\n"]
        )
        | st.sampled_from(
            [b"5\nhello\n", b"5 \r\nhello\r\n", b"+5\r\nhello\r\n", b"1_0\r\n0123456789abcdef\r\n", b"x"]
        ),
        max_size=8,
    )
)
@example([b"5\r", b"5\r\nhello\r\n"])
@example([b"5\r\nhello\r\n1", b"5\r\nhello\r\n"])
def test_a_whole_chunk_taken_past_the_parser_is_what_the_parser_takes(pieces: list[bytes]) -> None:
    """However the reads before it ended: in a size line, in a chunk, between two of them."""
    reader, body, state = ResponseReader(), b"", "waiting"
    reader.feed(CHUNKED)
    try:
        for piece in pieces:
            if reader.complete:
                reader.feed(piece)
                continue
            whole = reader.whole_chunk(memoryview(piece))
            if not whole:
                reader.feed(memoryview(piece))
            body += whole + reader.take()
    except ProxyError as error:
        state = error.kind.outcome
        body += reader.take()
    general = read([CHUNKED, *pieces], take=True)
    assert (body, reader.excess) == (general.body, general.excess)
    assert reader.received_bytes == len(body)
    assert ("complete" if reader.complete else state) == general.state


def test_usual_chunks_need_no_parser() -> None:
    reader = ResponseReader()
    reader.feed(CHUNKED)
    assert reader.whole_chunk(b"5\r\nhello\r\n") == b"hello"
    reader.feed(b"1\r\nx\r\n2\r\nyz\r\n")
    assert reader.take() == b"xyz"
    assert reader.whole_chunk(memoryview(b"5\r\nhello\r\n")) == b"hello"
    reader.feed(b"6\r\n")
    assert reader.whole_chunk(b"1\r\nA\r\n") == b""
    assert ResponseReader().whole_chunk(b"1\r\nA\r\n") == b""
