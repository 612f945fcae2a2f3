"""The scanner never changes a byte, and says where events end; the decoder follows the standard."""

from __future__ import annotations

import itertools
import re
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core import sse
from proxy.core.sse import KEEPALIVE_COMMENT, MAX_EVENT_BYTES, Event, EventScanner, parse_events

BOM = b"\xef\xbb\xbf"
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"This"},"finish_reason":null}]}\n\n'
NAMED = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'

PIECES = st.sampled_from([
    b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", BOM, b" ", b":", b"\0",
    b"data: x", b"data", b"data:", b"data:  y", b"dat", b"a: z", b"database: no", b'data: {"a":1}\n\n', b"data: [DONE]",
    b"[DONE]", b"id: 7", b"id", b"identity: no", b"event: e", b'event: e\ndata: {"b":2}\n\n', b": comment", b"retry: 9",
    "data: ä€😀".encode(), "😀".encode()[:2],
])  # fmt: skip
STREAMS = st.lists(PIECES, max_size=14).map(b"".join)


def naive_events(stream: bytes, *, final: bool) -> tuple[list[Event], bool]:
    """The standard's algorithm, one byte at a time; and whether an `id` field was there."""
    text = stream[3:] if stream[:3] == BOM else stream
    lines, line, at = [], bytearray(), 0
    while at < len(text):
        if text[at : at + 1] in {b"\r", b"\n"}:
            at += text[at : at + 2] == b"\r\n"
            lines.append(bytes(line))
            line = bytearray()
        else:
            line.append(text[at])
        at += 1
    if final:
        lines += [bytes(line), b""]
    events, data, kind, last_id, id_seen = [], b"", b"", None, False
    for each in lines:
        if each == b"":
            if data != b"":
                events.append(Event(kind.decode(errors="replace"), data[:-1], last_id))
            data, kind = b"", b""
            continue
        match = re.fullmatch(rb"([^:]*)(?::( ?)(.*))?", each, re.DOTALL)
        assert match
        value = match[3] or b""
        if match[1] == b"data":
            data += value + b"\n"
        elif match[1] == b"event":
            kind = value
        elif match[1] == b"id":
            id_seen = True
            if b"\0" not in value:
                last_id = value.decode(errors="replace")
    return events, id_seen


def naive_boundary(prefix: bytes) -> int:
    """Where the last blank line of what arrived so far ends."""
    ends = [m.end() for m in re.finditer(rb"([^\r\n]*)(\r\n|\r|\n)", prefix) if not m[1]]
    return ends[-1] if ends else 0


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    return [stream[a:b] for a, b in itertools.pairwise(places)]


def facts(scanner: EventScanner) -> dict[str, Any]:
    return {name: getattr(scanner, name) for name in ("events", "done", "id_seen", "held_bytes")}


def run(parts: list[bytes]) -> tuple[bytes, dict[str, Any]]:
    scanner = EventScanner()
    out = b"".join([scanner.feed(part) for part in parts]) + scanner.finish()
    return out, facts(scanner)


@given(STREAMS, st.lists(st.integers(1, 60), max_size=6))
@example(b"data: x\r\n\r\ndata: y\r\n\r\n", [10])
@example(b"\r\n", [1])
@example(BOM + b"data: x\n\n", [1, 2])
def test_everything_up_to_the_last_boundary_is_released_at_once(stream: bytes, cuts: list[int]) -> None:
    """After every read, exactly the whole events so far have gone out, and the rest is held."""
    scanner, fed, out = EventScanner(), b"", b""
    for part in cut(stream, cuts):
        fed += part
        out += scanner.feed(part)
        assert out == fed[: naive_boundary(fed)]
        assert scanner.held_bytes == len(fed) - len(out)
        half_a_crlf = out == fed and re.search(rb"(\A|\n)\r\Z", fed) is not None
        assert scanner.at_boundary is not half_a_crlf
    rest = scanner.finish()
    assert out + rest == stream
    assert scanner.at_boundary is (not rest)


@given(STREAMS, st.lists(st.integers(1, 60), max_size=6))
def test_whole_byte_by_byte_and_at_any_cut_the_facts_are_the_same(stream: bytes, cuts: list[int]) -> None:
    events, id_seen = naive_events(stream, final=True)
    done = any(event.data.strip() == b"[DONE]" for event in events)
    expected = stream, {"events": len(events), "done": done, "id_seen": id_seen, "held_bytes": 0}
    assert run([stream]) == expected
    assert run([stream[i : i + 1] for i in range(len(stream))]) == expected
    assert run(cut(stream, cuts)) == expected


@given(STREAMS, st.lists(st.integers(1, 60), max_size=6), st.integers(12, 24))
def test_an_oversize_event_flows_and_is_counted_once(stream: bytes, cuts: list[int], limit: int) -> None:
    events, id_seen = naive_events(stream, final=True)
    with mock.patch.object(sse, "MAX_EVENT_BYTES", limit):
        for parts in ([stream], [stream[i : i + 1] for i in range(len(stream))], cut(stream, cuts)):
            scanner, fed, out = EventScanner(), b"", b""
            for part in parts:
                fed += part
                out += scanner.feed(part)
                assert scanner.held_bytes <= limit
                boundary = naive_boundary(fed)
                assert fed.startswith(out)
                assert len(out) >= boundary
                if len(out) > boundary:
                    assert not scanner.at_boundary
            assert out + scanner.finish() == stream
            assert (scanner.events, scanner.id_seen) == (len(events), id_seen)


def test_an_event_of_the_largest_size_is_held_and_one_byte_more_flows() -> None:
    scanner = EventScanner()
    event = b"data: " + b"x" * (MAX_EVENT_BYTES - 6)
    assert scanner.feed(event) == b""
    assert (scanner.held_bytes, scanner.at_boundary) == (MAX_EVENT_BYTES, True)
    assert scanner.feed(b"y") == event + b"y"
    assert (scanner.held_bytes, scanner.at_boundary, scanner.events) == (0, False, 0)
    assert scanner.feed(b"z\n") == b"z\n"
    assert not scanner.at_boundary
    assert scanner.feed(b"\n: c") == b"\n"
    assert (scanner.held_bytes, scanner.at_boundary, scanner.events) == (3, True, 1)


def test_done_is_not_looked_for_inside_an_oversize_event() -> None:
    padding = b":" + b"x" * MAX_EVENT_BYTES + b"\n"
    whole, parted = EventScanner(), EventScanner()
    whole.feed(padding + b"data: [DONE]\n\n")
    parted.feed(padding)
    parted.feed(b"data: [DONE]\n\n")
    assert (whole.done, parted.done) == (False, False)
    assert (whole.events, parted.events) == (1, 1)


def test_an_oversize_event_that_never_ends_is_counted_at_the_end_of_the_body() -> None:
    scanner = EventScanner()
    scanner.feed(b"data: " + b"x" * MAX_EVENT_BYTES)
    assert (scanner.finish(), scanner.events, scanner.at_boundary) == (b"", 1, False)


@pytest.mark.parametrize("data", [CHUNK, NAMED, CHUNK * 3, b": ping\n\n", CHUNK.replace(b"\n", b"\r\n")])
def test_whole_events_are_passed_on_without_a_copy(data: bytes) -> None:
    assert EventScanner().feed(data) is data


def test_what_is_held_is_never_looked_at_again() -> None:
    """Feeding 64 KiB byte by byte is linear: the held bytes are appended to and joined, nothing else."""

    class Untouchable(bytearray):
        def _refuse(self, *_: Any) -> Any:
            raise AssertionError("held bytes were read again")

        __getitem__ = __contains__ = __iter__ = find = rfind = count = endswith = startswith = _refuse

    scanner = EventScanner()
    scanner._held = Untouchable()
    event = b"data: " + b"x" * 2000 + b"\r\n\r"
    assert b"".join([scanner.feed(event[i : i + 1]) for i in range(len(event))]) == event


def test_the_short_way_for_the_usual_event_leaves_no_trace() -> None:
    scanner = EventScanner()
    assert scanner.feed(b"data: x\r\r") + scanner.feed(CHUNK) == b"data: x\r\r" + CHUNK
    scanner.feed(b"\r")
    assert not scanner.at_boundary  # it follows the LF of the chunk, not the CR before it
    fresh = EventScanner()
    assert fresh.feed(CHUNK) + fresh.feed(BOM + b"data: x\n\n") == CHUNK + BOM + b"data: x\n\n"
    assert fresh.events == 1  # no longer the start of the stream


@pytest.mark.parametrize(
    ("stream", "events", "id_seen"),
    [
        (NAMED, 1, False),
        (NAMED + NAMED, 2, False),
        (CHUNK + CHUNK, 2, False),
        (b'data: {"a":1}\rid: 5\n\n', 1, True),
        (b'data: {"a":1}\nid: 5\n\n', 1, True),
        (b'event: e\rid: 5\ndata: {"a":1}\n\n', 1, True),
        (b'event: e\n\ndata: {"a":1}\n\n', 1, False),
        (b'data: {"a":1}\n\n: c\n\n', 1, False),
    ],
)
def test_the_short_way_is_not_taken_by_what_only_looks_usual(stream: bytes, events: int, *, id_seen: bool) -> None:
    scanner = EventScanner()
    assert scanner.feed(stream) == stream
    assert (scanner.events, scanner.id_seen) == (events, id_seen)


def test_nothing_of_ours_fits_between_the_halves_of_a_crlf() -> None:
    scanner = EventScanner()
    assert scanner.feed(b"data: x\r\n\r") == b"data: x\r\n\r"
    assert not scanner.at_boundary
    assert scanner.feed(b"\n") == b"\n"
    assert (scanner.at_boundary, scanner.held_bytes, scanner.events) == (True, 0, 1)


def test_the_cr_of_a_blank_line_is_a_boundary_once_no_lf_follows() -> None:
    scanner = EventScanner()
    scanner.feed(b"data: x\n\r")
    assert not scanner.at_boundary
    assert scanner.feed(b"d") == b""
    assert scanner.at_boundary


@pytest.mark.parametrize(
    ("stream", "done"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE] \r\n\r\n", True),
        (b"data: [DONE]", True),
        (b"data: [DONE]\n", True),
        (b'data: {"content":"[DONE]"}\n\n', False),
        (b": [DONE]\n\n", False),
        (b"data: [DONE]\ndata: more\n\n", False),
    ],
)
def test_done_is_an_event_whose_data_says_so(stream: bytes, *, done: bool) -> None:
    scanner = EventScanner()
    assert scanner.feed(stream) + scanner.finish() == stream
    assert scanner.done is done


def test_a_keep_alive_comment_is_no_event_and_ends_at_a_boundary() -> None:
    scanner = EventScanner()
    assert scanner.feed(CHUNK + KEEPALIVE_COMMENT + CHUNK) == CHUNK + KEEPALIVE_COMMENT + CHUNK
    assert (scanner.events, scanner.at_boundary) == (2, True)


def test_feeding_nothing_changes_nothing() -> None:
    scanner = EventScanner()
    assert (scanner.feed(b""), scanner.finish(), scanner.at_boundary, scanner.events) == (b"", b"", True, 0)


@given(stream=STREAMS, final=st.booleans())
def test_the_decoder_agrees_with_the_standard(stream: bytes, *, final: bool) -> None:
    assert parse_events(stream, at_start=True, final=final) == naive_events(stream, final=final)[0]


def test_the_decoder_on_the_standard_s_own_example() -> None:
    """WHATWG HTML section 9.2.6: one leading space goes; data without a value is an event, a block without is none."""
    block = (
        b"data\n\ndata\ndata\n\ndata:\n\nid: 3\nevent: add\ndata:  73857293\ndata: x\nfoo: bar\n\nid\n\ndata: dropped"
    )
    assert parse_events(block) == [
        Event("", b"", None),
        Event("", b"\n", None),
        Event("", b"", None),
        Event("add", b" 73857293\nx", "3"),
    ]
    assert parse_events(block, final=True)[-1] == Event("", b"dropped", "")


def test_a_byte_order_mark_is_skipped_at_the_start_of_a_stream_only() -> None:
    assert parse_events(BOM + b"data: x\n\n", at_start=True) == [Event("", b"x", None)]
    assert parse_events(BOM + b"data: x\n\n") == []
