"""Decoding many events at once says the same as decoding each by itself, and odd ones are read as far as possible."""

from __future__ import annotations

import msgspec
import pytest

from proxy.core.answer_events import LargeEvent, Said, read_events, read_json
from tests.fakes.recordings import DONE, RECORDINGS
from tests.fakes.usage_recordings import STREAMS, said, typed

BODIES = {name: recording.body for name, recording in RECORDINGS.items()}
BODIES |= {f"usage-{name}": told.body for name, told in STREAMS.items()}


def plain(events: list[Said]) -> list[object]:
    return [msgspec.to_builtins(each) for each in events]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_line_ends_and_comments_change_nothing(body: bytes) -> None:
    whole = read_events(body, at_start=True, final=True)
    assert whole.faults == 0
    for other in (
        body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        b": comment\n\n" + body.removeprefix(b"\xef\xbb\xbf"),
    ):
        events = read_events(other, at_start=True, final=True)
        assert plain(events.said) == plain(whole.said)
        assert events.done == whole.done


@pytest.mark.parametrize(
    "spoiler", [b"data: {\n\n", b"data: 1,2\n\n", b'data: {},{"usage":{}}\n\n', b"data: x\n\n", b"data: {\r}\n\n"]
)
def test_one_broken_event_spoils_no_other(spoiler: bytes) -> None:
    events = read_events(said("a") + spoiler + said("b") + DONE)
    assert [each.choices[0].delta.content for each in events.said if each.choices and each.choices[0].delta] == [
        "a",
        "b",
    ]
    assert events.faults == 1
    assert events.done


def test_halves_of_json_in_two_events_are_not_one() -> None:
    assert read_events(b'data: {"a":[1\n\ndata: 2],"usage":{"b":1}}\n\n') == ([], False, 2)


def test_done_may_stand_anywhere() -> None:
    assert read_events(DONE) == ([], True, 0)
    assert read_events(DONE + b"data: {}\n\n").done
    assert read_events(b"data:[DONE] \n\n").done
    assert not read_events(b"").done


def content(text: bytes) -> object:
    read = read_json(b'{"choices":[{"delta":{"content":"x"}}]%b}' % text)
    assert read is not None
    assert read.choices
    assert read.choices[0].delta is not None
    return read.choices[0].delta.content


@pytest.mark.parametrize(
    "odd",
    [
        b',"type":7',
        b',"response":"no"',
        b',"x_groq":[]',
        b',"item":1',
        b',"output_index":"0"',
        b',"skipped":"\xff"',
        b',"skipped":"\\ud83c"',
        b',"skipped":NaN',
    ],
)
def test_a_member_of_an_unusual_type_hides_no_other(odd: bytes) -> None:
    assert content(odd) == "x"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (b'{"index":0.0,"delta":{"content":"x"}}', "x"),
        (b'{"index":null,"delta":{"content":"x","role":1,"tool_calls":[null]}}', "x"),
        (b'{"index":1e300,"delta":{"content":"x","tool_calls":{}}}', "x"),
        (b'{"finish_reason":1,"delta":{"content":"x","reasoning":[]}}', "x"),
        (b'{"text":[],"delta":{"content":"x","audio":"y"}}', "x"),
        (b'{"delta":{"content":7,"refusal":{}}}', None),
        (b'{"delta":{"content":"\\ud83c"}}', "\ud83c"),
        (b'{"delta":{"content":"\xff"}}', "\ufffd"),
    ],
)
def test_a_choice_is_read_as_far_as_possible(choice: bytes, expected: str | None) -> None:
    read = read_json(b'{"choices":[7,%b]}' % choice)
    assert read is not None
    assert read.choices is not None
    (only,) = read.choices
    assert only.delta is not None
    assert only.delta.content == expected


def test_decoded_arguments_are_written_as_json() -> None:
    read = read_json(b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":[1]}}}]}}]}')
    assert read is not None
    assert read.choices is not None
    assert read.choices[0].message is not None
    assert read.choices[0].message.tool_calls is not None
    assert read.choices[0].message.tool_calls[0].function is not None
    assert read.choices[0].message.tool_calls[0].function.arguments == '{"a":[1]}'


@pytest.mark.parametrize(
    "text", [b'{"choices":null}', b'{"choices":{}}', b"[]", b'[{"error":{}}]', b"7", b'"x"', b"null"]
)
def test_what_has_no_choices_says_nothing(text: bytes) -> None:
    read = read_json(text)
    assert read is not None
    assert not read.choices


@pytest.mark.parametrize("text", [b"", b"{", b"x", b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b'{"a":1}}'])
def test_what_is_not_json_is_nothing(text: bytes) -> None:
    assert read_json(text) is None


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_large_event_ends_at_its_blank_line_however_it_is_cut(line_end: bytes) -> None:
    usage = {"input_tokens": 1, "output_tokens": 2}
    event = typed("image_edit.completed", b64_json="A" * 100, usage=usage).replace(b"\n", line_end)
    behind = b"data: {}\n\n"
    for cut in range(len(event) + 1):
        large = LargeEvent()
        rest = large.feed(event[:cut])
        rest += event[cut:] + behind if large.is_complete else large.feed(event[cut:] + behind)
        assert large.is_complete
        assert rest.lstrip(b"\n") == behind
        assert large.faults == 0
        assert large.said().usage == usage
        assert large.said().type == "image_edit.completed"


def test_a_large_event_that_is_broken_says_nothing() -> None:
    large = LargeEvent()
    assert large.feed(b'data: {"usage":{"input_tokens":1},"b":[\n\n') == b""
    assert large.faults == 1
    assert large.said() == Said()
