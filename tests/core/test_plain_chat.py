"""The short way to a chat's estimate comes to what the long one does, and leaves to it whatever it does not know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import prompts
from proxy.core.plain_chat import read_plain_chat
from proxy.core.prompts import Estimate, estimate
from proxy.core.tokens import MAX_TOKENS, O200K, ApproximateCounter

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = "chat/completions"
COUNTER = ApproximateCounter()

_texts = st.text(max_size=20)
_odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 1, 2.5, "", "3", [], {}, [{"type": "text", "text": "part"}]]
)
_amounts = st.integers(-1, 5) | st.sampled_from([None, 2.0, 2.5, "7", True, MAX_TOKENS, MAX_TOKENS + 1, 10**20])
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": _texts | _odd, "content": _texts | _texts | _odd},
        optional={"name": _texts | _odd, "tool_calls": _odd, "refusal": _texts},
    )
    | st.fixed_dictionaries({"role": _texts, "content": _texts}),
    max_size=4,
)
_bodies = st.fixed_dictionaries(
    {"messages": _messages | _odd},
    optional={
        "model": _texts,
        "n": _amounts,
        "max_tokens": _amounts,
        "max_completion_tokens": _amounts,
        "tools": st.sampled_from([None, [], [{"function": {"name": "f", "description": "what it does"}}]]),
        "response_format": st.sampled_from([None, {"type": "json_schema", "json_schema": {"a": 1}}]),
        "prompt": _odd,
        "temperature": st.floats(0, 1),
        "metadata": st.dictionaries(_texts, _texts, max_size=2),
    },
)


def _the_long_way(body: bytes) -> Estimate:
    return prompts._estimate_any(body, prompts._MEASURES[CHAT], O200K, COUNTER)


@given(_bodies, st.booleans())
def test_both_ways_come_to_the_same(body: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert estimate(text, CHAT, O200K, COUNTER) == _the_long_way(text)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","role":"system","content":"a b"}],"messages":[{"role":"user","content":"c"}]}',
        b'{"messages":[{"role":"user","content":"half \\ud83d of a pair"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":"a"}],"input":1e999}',
        b'{"messages":[' + b",".join([b'{"role":"user","content":""}'] * 20_000) + b"]}",
        b'{"messages":[{"role":"user","content":"a"}]',
    ],
    ids=["twice", "surrogate", "deep", "beyond all bounds", "many", "broken"],
)
def test_odd_texts_come_to_the_same(body: bytes) -> None:
    assert estimate(body, CHAT, O200K, COUNTER) == _the_long_way(body)


class Seen:
    """A counter that remembers what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def count(self, texts: Sequence[str], encoding: str) -> int:
        self.texts += texts
        return 0


def test_the_usual_chat_is_read_the_short_way() -> None:
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}],
        "temperature": 0.2,
        "stream": True,
        "max_tokens": 40,
        "n": 2,
    }
    text = json.dumps(body).encode()
    assert read_plain_chat(text) is not None
    seen = Seen()
    assert estimate(text, CHAT, O200K, seen) == Estimate(9, 80, 2)
    assert seen.texts == ["system", "Be kind.", "user", "Hello!"]


def test_a_plain_chat_is_none_of_the_other_endpoints() -> None:
    body = b'{"messages":[{"role":"user","content":"one two"}],"input":"three"}'
    seen = Seen()
    estimate(body, "responses", O200K, seen)
    assert seen.texts == ["user", "three"]
