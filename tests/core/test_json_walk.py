"""The walker finds what a whole decode would find, wherever the text is cut, and only at its place."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.json_walk import MAX_VALUE_BYTES, JsonWalk, Path

PATHS: tuple[Path, ...] = (("type",), ("usage",), ("response", "usage"), ("x_groq", "usage"))

names = st.sampled_from(["usage", "response", "type", "x_groq", "a", "us\\age", 'us"age', "\u00fcsage"]) | st.text(
    max_size=3
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=25,
)


def walked(text: bytes, cuts: list[int] | None = None) -> JsonWalk:
    walk = JsonWalk(*PATHS)
    at = 0
    for cut in sorted(cuts or []):
        walk.feed(text[at:cut])
        at = max(at, cut)
    walk.feed(text[at:])
    return walk


def found(whole: Any) -> dict[Path, Any]:
    """What is at the paths of a decoded text."""
    values = {}
    for path in PATHS:
        at = whole
        for name in path:
            at = at.get(name, ...) if isinstance(at, dict) else ...
        if at is not ...:
            values[path] = at
    return values


@given(
    st.dictionaries(names, values, max_size=6) | values,
    st.booleans(),
    st.sampled_from([None, 1]),
    st.lists(st.integers(0, 300), max_size=12),
)
def test_it_agrees_with_a_decoder_at_any_cuts(
    value: Any, ascii_only: bool, indent: int | None, cuts: list[int]
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    walk = walked(text, cuts)
    assert {path: json.loads(raw) for path, raw in walk.values.items()} == found(value)
    assert walk.ended == isinstance(value, dict | list | str)


@given(st.dictionaries(names, values, min_size=1, max_size=6))
def test_byte_by_byte_is_as_whole(value: Any) -> None:
    text = json.dumps(value).encode()
    assert walked(text, list(range(len(text)))).values == walked(text).values


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_do(chunks: list[bytes]) -> None:
    walk = JsonWalk(*PATHS)
    for chunk in chunks:
        walk.feed(chunk)


ECHO = '"usage":{"input_tokens":0}'


@pytest.mark.parametrize(
    "text",
    [
        '{"response":{"tools":[{"parameters":{%s}}]}}',
        '{"tools":[{%s}],"metadata":{"x":{%s}}}',
        '{"response":{"metadata":{%s},"text":{"format":{%s}}}}',
        "[{%s}]",
        '{"a":"{\\"usage\\":{}}","b":"\\\\","c":[{%s}]}',
        '{"a":[[],[{"b":"]"}],{%s}]}',
        '{"Usage":{},"x":{%s}}',
    ],
)
def test_usage_at_another_place_is_not_found(text: str) -> None:
    walk = walked(text.replace("%s", ECHO).encode())
    assert walk.values == {}
    assert walk.ended


def test_of_a_name_given_twice_the_last_counts() -> None:
    assert walked(b'{"usage":1,"usage":2}').values == {("usage",): b"2"}
    assert walked(b'{"response":{"usage":1},"response":{"id":2}}').values == {}
    assert walked(b'{"response":{"usage":1},"response":null}').values == {}


def test_a_name_may_be_written_with_escapes() -> None:
    assert walked(rb'{"us\u0061ge":1,"a\x":2}').values == {("usage",): b"1"}


def test_a_value_that_is_too_long_is_not_kept() -> None:
    longest = b'"' + b"x" * (MAX_VALUE_BYTES - 2) + b'"'
    assert walked(b'{"usage":%b}' % longest, [100, 5000]).values == {("usage",): longest}
    assert walked(b'{"usage":%b ,"type":1}' % longest, [100, 5000]).values == {("type",): b"1"}


def test_nothing_is_read_behind_the_end() -> None:
    assert walked(b'{"type":1}{"usage":2}').values == {("type",): b"1"}
    assert walked(b'[{"type":1}]{"usage":2}').values == {}
    assert walked(b'"x" {"usage":2}').values == {}


def test_an_incomplete_value_is_no_value() -> None:
    assert walked(b'{"usage":{"input_tokens":12').values == {}
    assert walked(b'{"usage":12').values == {}


def test_lines_of_an_event_are_walked_over() -> None:
    walk = walked(b'event: x\ndata: {"a":[1,\ndata: 2],\ndata: "usage":\ndata: {"b":1}}\n\n')
    assert walk.values.keys() == {("usage",)}
    assert walk.ended


@pytest.mark.parametrize(
    "inner", [b'"' + b"A" * 9_000_000 + b'"', b"[" + b"0.123," * 1_500_000 + b"1]", b"[" * 99_000 + b"]" * 99_000]
)
def test_memory_is_constant(inner: bytes) -> None:
    text = b'{"data":%b,"usage":{"a":1}}' % inner
    walk = JsonWalk(("usage",))
    tracemalloc.start()
    try:
        for at in range(0, len(text), 16384):
            walk.feed(text[at : at + 16384])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert walk.values == {("usage",): b'{"a":1}'}
    assert peak_bytes < 65536
