"""A stream whose usage was asked for by us, and hidden again, is the stream that the client asked for."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core import injection
from proxy.core.injection import UsageHider, refuses_stream_options
from proxy.core.sse import MAX_EVENT_BYTES
from tests.fakes.injected import MOST_NAMES, Pair, cut, hidden, pairs
from tests.fakes.recordings import RECORDINGS

CUTS = st.lists(st.integers(0, 5000), max_size=8)


def once(event: bytes) -> bytes:
    return UsageHider().hide(event)


@given(pairs(), CUTS)
@example(Pair(b'data: {"choices":[],"usage":{}}\r\n\r\ndata: x\r\n\r\n', b"data: x\r\n\r\n"), [34])
@example(Pair(b': c\r\ndata: {"choices":[],"usage":{}}\r\n\r\n', b": c\r\n"), [39])
@example(Pair(b'data: {"a":1,"usage":null}\r\n\r\ndata: x\r\n\r\n', b'data: {"a":1}\r\n\r\ndata: x\r\n\r\n'), [29])
@example(Pair(b"\r\n\r\n", b"\r\n\r\n"), [3])
def test_hidden_usage_leaves_the_bytes_of_the_stream_without(pair: Pair, places: list[int]) -> None:
    assert hidden(cut(pair.asked, places)) == pair.unasked
    assert hidden(cut(pair.unasked, places)) == pair.unasked


@given(st.sampled_from(sorted(RECORDINGS)), CUTS)
def test_recordings_without_injected_members_pass_unchanged(name: str, places: list[int]) -> None:
    body = RECORDINGS[name].body
    # recorded from requests that asked for usage
    asked = {"openai", "crlf", "cr", "bom", "completions"}
    # these two send such members unasked too, and no rule could tell which is meant: a null or an absent member of a
    # chunk is the same to every SDK
    unasked = {"azure", "together"}
    # llama.cpp appends its usage event asked or not; whoever asked for none must not be sent a chunk without choices
    assert (hidden(cut(body, places)) != body) == (name in asked | unasked | {"llama.cpp"})


def test_what_was_recorded_with_usage_comes_out_without() -> None:
    for name in ("openai", "crlf", "cr", "bom", "completions", "azure", "llama.cpp"):
        shown = hidden([RECORDINGS[name].body])
        assert b"usage" not in shown
        assert shown.count(b"[DONE]") == 1
    azure = RECORDINGS["azure"].body
    assert hidden([azure]) == azure.replace(b',"usage":null', b"")


@pytest.mark.parametrize(
    ("asked", "unasked"),
    [
        ('{"a":1,"usage":null}', '{"a":1}'),
        ('{"a": 1, "usage": null, "b": 2}', '{"a": 1, "b": 2}'),
        ('{"usage": null, "b": 2}', '{"b": 2}'),
        ('{ "usage" : null , "b" : 2 }', '{ "b" : 2 }'),
        ('{"a":{"usage":null},"usage":null,"b":{"usage":null}}', '{"a":{"usage":null},"b":{"usage":null}}'),
        (
            '{"usage":null,"a":[' + '{"usage":1},' * (MOST_NAMES - 1) + "1]}",
            '{"a":[' + '{"usage":1},' * (MOST_NAMES - 1) + "1]}",
        ),
        ('{"a":"\\"usage\\":null","usage":null}', '{"a":"\\"usage\\":null"}'),
    ],
)
def test_the_null_member_goes_with_its_comma(asked: str, unasked: str) -> None:
    assert once(f"data: {asked}\n\n".encode()) == f"data: {unasked}\n\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        '{"usage":null}',
        '{"a":{"usage":null}}',
        '{"a":{"b":1,"usage":null}}',
        '{"a":{"usage":null,"b":1},"c":2}',
        '[{"a":1,"usage":null}]',
        '{"a":1,"usage":null}}',
        '{"a":1,"usage":null',
        '{"a":1,"usage":nullx}',
        '{"a":1,,"usage":null}',
        '{"a":1 "usage":null}',
        '{"usage":null;"a":1}',
        '{"a":1,\r"usage":null}',
        '{"a":[1,"usage":null]}',
        '{"a":"x,"usage":null}',
        '{"usage":null,"a":1,"usage":null}',
        '{"usage":{"a":1},"b":1,"usage":null}',
        '{"a":1,"usage":null,"usage":{"b":1}}',
        r'{"us\u0061ge":1,"usage":null}',
        r'{"a":1,"us\u0061ge":null}',
        r'{"a\",\"usage":null,"b":1}',
        '{"a":"usage","b":null}',
        '{"a":"x"}, "usage":null}',
        '{"a":' + "[" * 20_000 + ',"usage":null}',
        '{"usage":null,"a":' + "[" * 20_000,
        "{" + '"a":{"usage":null},' * 9 + '"b":1}',
        '{"usage":null,"a":[' + '{"usage":1},' * MOST_NAMES + "1]}",
        '{"choices":[{"index":0,"delta":{}}],"usage":{"total_tokens":1}}',
        '{"choices":[],"usage":"a"}',
        '{"choices":[],"usage":[]}',
        '{"choices":[],"a":{"usage":{}}}',
        '{"choices":null,"usage":{}}',
        '{"choices":"a","usage":{},"timings":{"choices":[]}}',
        '{"usage":{}}',
        '{"a":{"choices":[]},"usage":{}}',
        '[{"choices":[],"usage":{}}]',
        '{"choices":[],"usage":{}',
        '{"choices":[],"usage":{},"a":' + "[" * 20_000,
        '{"choices":[],"usage":{},"error":{"message":"a"}}',
        '{"choices":[],"usage":{},"error":"a"}',
        '{"choices":[],"usage":{},"prompt_filter_results":[{"prompt_index":0}]}',
        '{"choices":[],"usage":{},"moderation":{"flagged":true}}',
        '{"choices":[],"usage":{},"citations":["https://example.org"]}',
        '{"choices":[],"usage":{},"x_groq":{"id":"a","error":"over capacity"}}',
        '{"choices":[],"usage":{},"x_groq":["a"]}',
    ],
)
def test_what_is_not_certain_stays(data: str) -> None:
    for event in (f"data: {data}\n\n", f"data: {data}\r\n\r\n", f": x\nevent: a\ndata:{data}\n\n"):
        assert once(event.encode()) == event.encode()


_STRINGS = st.sampled_from([
    "a", '"usage"', ',"usage":null', ',"usage":null}', "\\", '\\"', "}", "é", "\r", "\u2028", "usage",
    ',"obfuscation":"x"',
])  # fmt: skip
_JSON = st.recursive(
    st.none() | _STRINGS | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_STRINGS, inner, max_size=3),
    max_leaves=6,
)
_FRAGMENTS = st.sampled_from([
    '{"a":1', ',"usage":null', ',"usage":null}', ',"obfuscation":"aB3"}', "}", '"', "\\", ",", " ", "\r", '{"b":{"c":2',
    '"us\\u0061ge":1', '"usage":', '{"usage":null', "[", "]", ',"obfuscation":"a\\""}', "x", "\n", "data: ",
])  # fmt: skip


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    """An event that ends as upstreams end them, or anything put together of what could deceive."""
    if draw(st.booleans()):
        text = "".join(draw(st.lists(_FRAGMENTS, max_size=9)))
    else:
        members = draw(st.dictionaries(_STRINGS, _JSON, min_size=1, max_size=3))
        text = json.dumps(members, separators=(",", ":"), ensure_ascii=draw(st.booleans()))[:-1]
        text += draw(st.sampled_from([',"usage":null}', ',"usage":null,"obfuscation":"q"}', ' ,"usage":null}', "}"]))
    return b"data: %b%b" % (text.encode(), draw(st.sampled_from([b"\n\n"] * 8 + [b"\r\r", b"\r\n\r\n"])))


@st.composite
def _endings(draw: st.DrawFn) -> bytes:
    """What comes last: what may be a usage event, with members twice or under names that are not plain, and the end."""
    members = st.sampled_from([
        '"choices":[]', '"choices": [ ]', '"choices":[{}]', '"ch\\u006fices":[]', '"usage":{"a":1}', '"usage":null',
        '"us\\u0061ge":{"a":1}', '"usage":{"b":0,"usage":null}', '"usage":1', '"id":"a"', '"error":{"b":1}', '"x":{',
        '"timings":{"b":1}', '"obfuscation":"aB3"', '"choices":null',
    ])  # fmt: skip
    text = ",".join(draw(st.lists(members, max_size=5)))
    last = draw(st.sampled_from([b"", b"data: [DONE]\n\n", b"data: [DONE]\r\r", b"data: [DONE]\n", b"\n", b": x\n\n"]))
    return b"data: {%b}\n\n%b" % (text.encode(), last)


@given(st.tuples(st.lists(_lines(), max_size=3).map(b"".join), _endings()).map(b"".join))
@example(b'data: {"a":1,"usage":null}\n\ndata: {"choices":[],"usage":{"a":1}}\n\ndata: [DONE]\n\n')
@example(b'data: {"choices":[],"usage":null,"usage":{"a":1}}\n\ndata: [DONE]\n\n')
@example(b'data: {"choices":[],"us\\u0061ge":{"a":1}}\n\ndata: [DONE]\n\n')
def test_the_short_way_ends_as_the_general_way_ends(block: bytes) -> None:
    assert once(block) == UsageHider()._hide_in_events(block)


@given(st.lists(_lines(), min_size=1, max_size=3).map(b"".join))
@example(b'data: {"choices":[],"usage":{"a":1}}\r\rdata: {"x":1}\n\n')
@example(b'id: 7\r\rdata: {"choices":[],"usage":{"a":1}}\n\n')
@example(b'data: {"a":1 ,"usage":null}\n\n')
@example(b'data: {"a\\",\\"usage":null}\n\n')
@example(b'data: {"a":{"b":1,"usage":null}\n\n')
@example(b': xxxx{"a":1,"usage":null}\n\n')
@example(b'data: {"a":\r1,"usage":null}\n\n')
@example(b'data: {"a":1}{"b":["c","usage":null}\n\ndata: {"d":2}]},"usage":null}\n\n')
@example(b'data: {"a":1},{"b":[2,"usage":null}\n\ndata: {"c":3}]},"usage":null}\n\n')
@example(b'data: {"a":"b,"usage":null}\n\ndata: {"c":"d","usage":null}\n\n')
@example(b'data: {"a":1,"usage":null}\n\ndata: {"a":2,"usage":null,"obfuscation":"q"}\n\ndata: [DONE]\n\n')
@example(b'data: {"a":{"b":2,"usage":null},"usage":null}\n\n' * 2)
@example(b'data: {"a":1,"usage":null}\n\ndata: {"y":1\n\n,"x":1,"usage":null}\n\n')
@example(b'data: {"a":1,"usage":null}\n\ndata: {"y":1}\n\ndata: {"x":1,"usage":null}\n\n')
@example(b'data: {"a":1 ,"usage":null}\n\n' * 2)
@example(b'data: {"a":1\t,"usage":null}\n\n' * 2)
@example(b'data: {"usage":3,"b":2,"usage":null}\n\n' * 2)
@example(b'data: {,"usage":null}\n\ndata: {,"usage":null,"obfuscation":"q"}\n\n')
@example(b'data: {"a":"x,"usage":null,"obfuscation":"q"}\n\n' * 2)
@example(b'data: {"a":1,"usage":null,"usage":null}\n\n' * 2)
@example(b': xxxx{"a":1,"usage":null}\n\ndata: {"a":1,"usage":null}\n\n')
def test_the_short_way_hides_what_the_general_way_hides(block: bytes) -> None:
    assert once(block) == UsageHider()._hide_in_events(block)


@given(st.dictionaries(st.sampled_from(["id", "object", "model", "error", "citations", "usage", "choices"]), _JSON))
def test_a_usual_usage_event_is_known_for_what_the_general_way_takes_it(others: dict[str, object]) -> None:
    event = b"data: %b\n\n" % json.dumps({"choices": [], "usage": {"total_tokens": 1}} | others).encode()
    shown = once(event)
    with mock.patch.object(injection, "_decode_usage_event", side_effect=ValueError):
        assert shown == once(event)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "provider": "Groq", "error": None},
        {"service_tier": "default", "system_fingerprint": None, "obfuscation": "t", "prompt_filter_results": []},
        {"timings": {"prompt_n": 1}, "x_groq": {"id": "a", "usage": {"queue_time": 0.1}}, "warnings": []},
    ],
)
def test_the_usage_event_is_dropped_whole(others: dict[str, object]) -> None:
    usage = b"data: %b\n\n" % json.dumps({"choices": [], "usage": {"total_tokens": 1}} | others).encode()
    before, after = b'data: {"a":1}\n\n', b"data: [DONE]\n\n"
    assert hidden([before + usage + after]) == before + after
    assert hidden([before + b"id: 3\nevent: message\n" + usage + after]) == before + after
    assert hidden([before + b": x\n\n: y\n" + usage + after]) == before + b": x\n\n: y\n" + after
    lines = usage.replace(b', "usage"', b',\ndata: "usage"')
    assert hidden([before + b": x\n" + lines + after]) == before + b": x\n" + after


@given(CUTS, st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_an_oversize_event_stays_and_those_around_it_do_not(places: list[int], end: bytes) -> None:
    small = b'data: {"a":1,"usage":null}' + end * 2
    large = b'data: {"a":"%b","usage":null}' % (b"x" * MAX_EVENT_BYTES) + end * 2
    flowing, rest = large[: MAX_EVENT_BYTES + 1], large[MAX_EVENT_BYTES + 1 :]
    shown = small.replace(b',"usage":null', b"")
    assert hidden([small + flowing, *cut(rest + small, places)]) == shown + large + shown


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_fragment_that_looks_like_an_event_stays(end: bytes) -> None:
    """Only the blank line tells that an oversize event is over, wherever the reads are cut."""
    head = b"data: " + b"x" * MAX_EVENT_BYTES
    look = b'data: {"a":1,"usage":null}' + end * 2
    whole = head + end + look
    assert hidden([head + end, look]) == whole
    behind = b'data: {"b":1,"usage":null}' + end * 2
    for place in range(len(head), len(whole) - len(end)):
        shown = hidden([head, whole[len(head) : place], whole[place:] + behind])
        assert shown == whole + behind.replace(b',"usage":null', b"")


def test_comments_and_blank_lines_stay_whatever_they_say() -> None:
    for event in (b': "usage":null\ndata:\n\n', b': "usage":null\n\n', b': "usage"\ndata: [DONE]\n\n', b'"usage"\n\n'):
        assert once(event) == event
        assert hidden([event * 2]) == event * 2


@pytest.mark.parametrize("rest", [b"", b"\n", b"\r\n"])
def test_the_remainder_of_a_body_stays(rest: bytes) -> None:
    whole = b'data: {"a":1}\n\n'
    for data in (b'{"a":1,"usage":null}', b'{"choices":[],"usage":{"a":1}}'):
        assert hidden([whole + b"data: " + data + rest]) == whole + b"data: " + data + rest


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b'data: {"usage":null', b"\n\n", b'"usage"', b"\r"])))
def test_no_bytes_make_it_fail(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    assert len(hidden(pieces)) <= len(body)
    if b'"usage"' not in body:
        assert hidden(pieces) == body


@pytest.mark.parametrize(
    ("status", "body", "refuses"),
    [
        (422, b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}', True),
        (400, b'{"error":{"message":"Unrecognized request argument supplied: stream_options","code":null}}', True),
        (400, b'{"error":{"message":"include_usage is not supported","param":null}}', True),
        (400, b'{"error":{"message":"bad request","param":"messages"}}', False),
        (400, b"STREAM_OPTIONS", False),
        (401, b"stream_options", False),
        (500, b"stream_options", False),
        (200, b"stream_options", False),
        (400, b" " * 65536 + b"stream_options", False),
    ],
)
def test_a_refusal_names_the_parameter(status: int, body: bytes, *, refuses: bool) -> None:
    assert refuses_stream_options(status, body) is refuses
