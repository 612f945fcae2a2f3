"""Edits of a request compose, and a streamed request is made to ask for usage without another byte changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.body import edited, read_metered
from proxy.core.errors import BAD_REQUEST, ProxyError

SPACE = st.text(" \t\n\r", max_size=2)
TEXTS = st.text(max_size=6) | st.sampled_from(['"stream_options":{}', "include_usage", "\\", "{", "}"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
OTHERS = st.dictionaries(
    TEXTS.filter(lambda name: name.casefold() not in {"model", "stream", "stream_options", "include_usage"}),
    VALUES,
    max_size=4,
)
MISSING: Any = object()


def written(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    """An object of these names and JSON texts, in any order and with any white space."""
    draws = [
        "".join((draw(SPACE), json.dumps(name), draw(SPACE), ":", draw(SPACE), text, draw(SPACE)))
        for name, text in draw(st.permutations(members))
    ]
    return draw(SPACE) + "{" + (",".join(draws) or draw(SPACE)) + "}"


@st.composite
def streamed(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A streamed request, and whether it asks for usage itself."""

    def texts(values: dict[str, Any]) -> list[tuple[str, str]]:
        ascii_only = draw(st.booleans())
        return [(name, json.dumps(value, ensure_ascii=ascii_only)) for name, value in values.items()]

    members = texts(draw(OTHERS) | {"model": "m", "stream": True})
    asks = False
    kind = draw(st.sampled_from(["missing", "null", "object"]))
    if kind == "null":
        members.append(("stream_options", "null"))
    elif kind == "object":
        include = draw(st.sampled_from([MISSING, None, False, True]))
        asks = include is True
        options = draw(OTHERS) | ({} if include is MISSING else {"include_usage": include})
        members.append(("stream_options", written(draw, texts(options)).lstrip()))
    return (written(draw, members) + draw(SPACE)).encode(), asks


@given(streamed(), st.text(min_size=1))
def test_an_edited_request_asks_for_usage_and_says_nothing_else_new(request_: tuple[bytes, bool], model: str) -> None:
    body, asks = request_
    request = read_metered(body)
    assert (request.usage_edit is None) is asks
    usage = [request.usage_edit] if request.usage_edit else []
    asking = edited(body, usage)
    expected = json.loads(body)
    expected["stream_options"] = (expected.get("stream_options") or {}) | {"include_usage": True}
    assert json.loads(asking) == expected
    for start, end, replacement in usage:
        assert asking == body[:start] + replacement + body[end:]
    again = read_metered(asking)
    assert again.usage_edit is None

    rename = (*request.model_span, json.dumps(model).encode())
    both = edited(body, [rename, *usage])
    assert both == edited(body, [*usage, rename])
    assert json.loads(both) == expected | {"model": model}
    assert both == edited(asking, [(*again.model_span, json.dumps(model).encode())])


@pytest.mark.parametrize(
    ("body", "asking"),
    [
        ('{"model":"m","stream":true}', '{"stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (' { "model":"m","stream":true}', ' { "stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (
            '{"model":"m","stream":true,"stream_options" : null }',
            '{"model":"m","stream":true,"stream_options" : {"include_usage":true} }',
        ),
        (
            '{"model":"m","stream_options":{},"stream":true}',
            '{"model":"m","stream_options":{"include_usage":true},"stream":true}',
        ),
        (
            '{"model":"m","stream_options":{ "include_obfuscation":false},"stream":true}',
            '{"model":"m","stream_options":{ "include_usage":true,"include_obfuscation":false},"stream":true}',
        ),
        (
            '{"model":"m","stream_options":{"include_usage": false , "x":1},"stream":true}',
            '{"model":"m","stream_options":{"include_usage": true , "x":1},"stream":true}',
        ),
        (
            r'{"model":"m","stream_options":{"include\u005fusage":null},"stream":true}',
            r'{"model":"m","stream_options":{"include\u005fusage":true},"stream":true}',
        ),
        (
            r'{"model":"m","stream_options":{"x":"\ud83d"},"stream":true}',
            r'{"model":"m","stream_options":{"include_usage":true,"x":"\ud83d"},"stream":true}',
        ),
        (
            '{"model":"m","stream_options":{"continuous_usage_stats":false},"stream":true}',
            '{"model":"m","stream_options":{"include_usage":true,"continuous_usage_stats":false},"stream":true}',
        ),
        (
            '{"model":"m","stream_options":{"continuous_usage_stats":null,"include_usage":false},"stream":true}',
            '{"model":"m","stream_options":{"continuous_usage_stats":null,"include_usage":true},"stream":true}',
        ),
    ],
)
def test_where_the_edit_goes(body: str, asking: str) -> None:
    edit = read_metered(body.encode()).usage_edit
    assert edit is not None
    assert edited(body.encode(), [edit]) == asking.encode()


@pytest.mark.parametrize(
    "options",
    [
        '{"include_usage":true}',
        '{"include_usage":true,"continuous_usage_stats":true}',
        '{"include_usage":true,"continuous_usage_stats":false}',
        '{"continuous_usage_stats":true}',
        '{"continuous_usage_stats":1}',
        '{"include_usage":false,"continuous_usage_stats":true}',
        '{"include_usage":1}',
        '{"include_usage":"true"}',
        '{"include_usage":[true]}',
    ],
)
def test_some_requests_are_left_to_the_upstream(options: str) -> None:
    request = read_metered(b'{"model":"m","stream":true,"stream_options":%b}' % options.encode())
    assert (request.stream, request.usage_edit) == (True, None)


@pytest.mark.parametrize("rest", ["", ',"stream":false', ',"stream":null', ',"stream_options":null'])
def test_what_is_not_streamed_is_not_edited(rest: str) -> None:
    request = read_metered(b'{"model":"m"%b}' % rest.encode())
    assert (request.stream, request.usage_edit) == (False, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            '{"include_usage":true,"include_usage":false}',
            "The request body has more than one member 'stream_options.include_usage'.",
        ),
        (
            r'{"include_usage":true,"include_\u0075sage":true}',
            "The request body has more than one member 'stream_options.include_usage'.",
        ),
        (
            '{"continuous_usage_stats":true,"continuous_usage_stats":false}',
            "The request body has more than one member 'stream_options.continuous_usage_stats'.",
        ),
        ('{"Include_Usage":true}', "The name of member 'stream_options.include_usage' must be lower-case."),
    ],
)
def test_ambiguous_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(ProxyError) as caught:
        read_metered(b'{"model":"m","stream":true,"stream_options":%b}' % options.encode())
    assert (caught.value.kind, caught.value.message, caught.value.param) == (BAD_REQUEST, message, "stream_options")


def test_names_within_other_members_decide_nothing() -> None:
    body = b'{"model":"m","stream":true,"x":{"include_usage":1,"include_usage":2,"Stream":1},"Include_Usage":3}'
    assert read_metered(body).usage_edit is not None


def test_edits_do_not_overlap() -> None:
    assert edited(b"abc", []) == b"abc"
    assert edited(b"abc", [(3, 3, b"d"), (0, 1, b""), (1, 1, b"x"), (1, 2, b"y")]) == b"xycd"
    with pytest.raises(ValueError, match="overlap"):
        edited(b"abc", [(0, 2, b"x"), (1, 3, b"y")])
