"""The short way to read a metered request says what the long one does, and leaves to it whatever is ambiguous."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core import body as long_way
from proxy.core.body import read_metered
from proxy.core.errors import ProxyError
from proxy.core.members import MAX_MEMBERS

_SPELLINGS = ["model", "Model", "MODEL", "stream", "\u017ftream", "stream_options", "n", "N", "max_tokens", "best_of"]
_NAMES = st.sampled_from([*_SPELLINGS, "messages", "x", "", 'x"model', "model\\", "\u00e9"])
_VALUES = st.recursive(
    st.sampled_from([None, True, False, "m", "", "mod\u0065l", "\ud83d", "\u00e9", 'say "model":"x"', 0, 1, -1, 1.5])
    | st.sampled_from([10**9, 10**9 - 1, {"include_usage": True}, {"include_usage": False}, {}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=5,
)
_ASKING = ("stream_options", {"include_usage": True})
_TALKING = ("messages", [{"role": "user", "content": 'a "model":'}])
_FLAGS = [("stream", True), ("stream", False), ("n", 2), ("max_tokens", 9), ("max_tokens", None)]
_USUAL = st.sampled_from([("model", "m"), _ASKING, _TALKING, *_FLAGS])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object nearly as a program writes it; what may be wrong with it is what the long way is there for."""
    members: list[tuple[str, Any]] = draw(st.lists(_USUAL | st.tuples(_NAMES, _VALUES), max_size=6))
    if draw(st.booleans()):
        members = [("model", "m"), *(member for member in members if member[0] != "model")]
    spaced = draw(st.integers(0, 5)) == 0
    separators = (", ", ": ") if spaced else (",", ":")
    ascii_only = draw(st.booleans())
    texts = [
        separators[1].join(json.dumps(part, ensure_ascii=ascii_only, separators=separators) for part in member)
        for member in members
    ]
    text = "{" + separators[0].join(texts) + "}"
    if draw(st.integers(0, 5)) == 0:
        text = text.replace("model", "mod\\u0065l", 1)
    return text.encode(errors="surrogatepass") + draw(st.sampled_from([b"", b"", b"", b" ", b"\n", b"x", b"}"]))


def judged(body: bytes, *, shortly: bool) -> object:
    try:
        return read_metered(body) if shortly else long_way._read_any(body)
    except ProxyError as error:
        return error.kind, error.message, error.param


@given(bodies())
@example(b'{"model":"a","x":1,"model":"b"}')
@example(b'{"model":"a","stream":true,"stream":false}')
@example(b'{"model":"a","x\\"model":1}')
@example(b'{"messages":[{"model":1}],"model":"a"}')
@example(b'{"model":"a\x00"}')
@example(b'{"model":"a","x":"\x00"}')
@example(b'{"model":"a","x":"\xff"}')
@example(b'{"model":"a","x":01}')
@example(b'\xef\xbb\xbf{"model":"a"}')
@example(b'{"model":"a","x":' + b"[" * 5000 + b"]" * 5000 + b"}")
@example(b'{"model":"a",' + b",".join(b'"%d":1' % number for number in range(MAX_MEMBERS)) + b"}")
@example(b"{}")
@example(b"[]")
@example(b"")
def test_both_ways_say_the_same(body: bytes) -> None:
    assert judged(body, shortly=True) == judged(body, shortly=False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","content":"Hello"}],"model":"gpt-4o","temperature":0.2,"max_tokens":5}',
        '{"model":"m","messages":[{"role":"user","content":"Gr\u00fc\u00dfe \\n"}],"stream":true}'.encode(),
        b'{"stream":true,"stream_options":{"include_usage":true},"model":"m"}',
    ],
)
def test_what_programs_write_is_read_the_short_way(body: bytes) -> None:
    assert long_way._read_usual(body) == long_way._read_any(body)
