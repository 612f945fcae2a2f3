"""A request's prompt counts as OpenAI counts it where the rule is known, and no body, however odd, breaks the count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import tokenizers
from proxy.core import prompts
from proxy.core.body import read_metered
from proxy.core.images import MEDIA
from proxy.core.prompt_members import PromptMembers
from proxy.core.prompts import MAX_ANSWERS, Estimate, estimate
from proxy.core.tokens import CL100K, MAX_TOKENS, O200K

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = "chat/completions"
EXACT = tokenizers.load([O200K, CL100K])


class Calls:
    """A counter that counts words, and remembers what it was asked."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []

    def count(self, texts: Sequence[str], encoding: str) -> int:
        self.made.append(list(texts))
        return sum(len(text.split()) for text in texts)


def exactly(endpoint: str, encoding: str = O200K, **members: Any) -> Estimate:
    return estimate(json.dumps(members).encode(), endpoint, encoding, EXACT)


def by_words(endpoint: str, **members: Any) -> Estimate:
    return estimate(json.dumps(members).encode(), endpoint, O200K, Calls())


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


JARGON = [
    ("You are a helpful, pattern-following assistant that translates corporate jargon into plain English.", None),
    ("New synergies will help drive top-line growth.", "example_user"),
    ("Things working well together will increase revenue.", "example_assistant"),
    (
        "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
        "example_user",
    ),
    ("Let's talk later when we're less busy about how to do better.", "example_assistant"),
]
COOKBOOK = [
    *({"role": "system", "content": text} | ({"name": name} if name else {}) for text, name in JARGON),
    *user("This late pivot means we don't have time to boil the ocean for the client deliverable."),
]
WEATHER = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {
                "type": "string",
                "description": "The unit of temperature to return",
                "enum": ["celsius", "fahrenheit"],
            },
        },
        "required": ["location"],
    },
}
ABOUT_WEATHER = [
    {
        "role": "system",
        "content": "You are a helpful assistant that can answer to questions about the weather.",
    },
    *user("What's the weather like in San Francisco?"),
]


def test_one_message_as_recorded() -> None:
    assert exactly(CHAT, messages=user("Say this is a test")) == Estimate(12, None)


@pytest.mark.parametrize(("encoding", "tokens"), [(CL100K, 129), (O200K, 124)])
def test_the_cookbook_s_messages(encoding: str, tokens: int) -> None:
    assert exactly(CHAT, encoding, messages=COOKBOOK).prompt_tokens == tokens


@pytest.mark.parametrize(("encoding", "tokens"), [(CL100K, 105), (O200K, 101)])
@pytest.mark.parametrize("asked", [{"tools": [{"type": "function", "function": WEATHER}]}, {"functions": [WEATHER]}])
def test_the_cookbook_s_tools(encoding: str, tokens: int, asked: dict[str, Any]) -> None:
    assert exactly(CHAT, encoding, messages=ABOUT_WEATHER, **asked).prompt_tokens == tokens


def test_responses_count_as_chat() -> None:
    flat = [{"type": "function", **WEATHER}]
    asked = exactly(
        "responses", instructions=ABOUT_WEATHER[0]["content"], input=ABOUT_WEATHER[1]["content"], tools=flat
    )
    assert asked == exactly("responses", input=ABOUT_WEATHER, tools=flat) == Estimate(101, None)


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ({"role": "user", "content": "one two"}, 3),
        ({"role": "user", "content": [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]}, 4),
        ({"role": "assistant", "content": None, "refusal": "no no"}, 3),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, 2),
        ({"role": "user", "content": "one", "name": "ada"}, 4),
        ({"role": "assistant", "tool_calls": [{"id": "c1 c2", "function": {"name": "f", "arguments": "a b"}}]}, 4),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "a b"}}]}, 4),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "a b"}}, 4),
        ({"role": "tool", "tool_call_id": "c1 c2", "content": "warm and dry"}, 4),
        ({"type": "function_call", "call_id": "c1 c2", "name": "f", "arguments": "a b"}, 3),
        ({"type": "function_call_output", "call_id": "c1", "output": "a b"}, 2),
        ({"type": "function_call_output", "output": [{"type": "input_text", "text": "a b"}]}, 2),
        (
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a b"}], "encrypted_content": "x" * 60},
            12,
        ),
        ({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a b"}]}, 3),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}, 766),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}, 766),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A" * 64000}}]}, 31),
        ({"role": "user", "content": [{"type": "file", "file": {"file_data": "A" * 65536}}]}, 1537),
        ("just text", 2),
        (7, 0),
        ([], 0),
        ({}, 0),
    ],
)
def test_what_a_message_counts(message: Any, tokens: int) -> None:
    """Besides the three of each message and the three of the reply; on chat and as an item of a response."""
    assert by_words(CHAT, model="gpt-4o", messages=[message]).prompt_tokens == 6 + tokens
    assert by_words("responses", model="gpt-4o", input=[message]).prompt_tokens == 6 + tokens


def test_base64_is_never_counted_as_text() -> None:
    counter = Calls()
    secret = "QUJD" * 10_000
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{secret}"}},
        {"type": "input_audio", "input_audio": {"data": secret, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{secret}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{secret}"},
        {"type": "input_file", "file_data": secret},
        {"type": "text", "text": "look"},
    ]
    estimate(json.dumps({"messages": user(parts)}).encode(), CHAT, O200K, counter)
    assert [sorted(texts) for texts in counter.made] == [["look", "user"]]


def test_a_schema_counts_as_its_text() -> None:
    schema = {"type": "object", "properties": {"some name": {"type": "string"}}}
    as_chat = {"type": "json_schema", "json_schema": {"schema": schema}}
    as_response = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    assert by_words(CHAT, messages=user("x"), response_format=as_chat).prompt_tokens == 6 + 2 + 2
    assert by_words("responses", input="x", text=as_response).prompt_tokens == 6 + 2 + 2
    assert by_words(CHAT, messages=user("x"), response_format={"type": "json_object"}).prompt_tokens == 6 + 2


def test_nested_schemas_count_with_all_their_words() -> None:
    leaf = {"type": ["string", "null"], "description": "deep words.", "enum": ["a", 1]}
    parameters = {
        "properties": {"list": {"type": "array", "items": {"anyOf": [{"properties": {"leaf": leaf}}]}}},
        "$defs": {"other": {"properties": {"leaf": leaf}}},
    }
    counter = Calls()
    tools = [{"type": "function", "function": {"name": "f", "description": "Does.", "parameters": parameters}}]
    found = estimate(json.dumps({"tools": tools}).encode(), CHAT, O200K, counter)
    texts = ["1", "1", "a", "a", "f:Does", "leaf:string|null:deep words", "leaf:string|null:deep words", "list:array:"]
    assert sorted(counter.made[0]) == texts
    # reply and an empty message, tools, one function, three objects with a property each, two enumerations of two
    assert found.prompt_tokens == 6 + 12 + 7 + 3 * 6 + 2 * 3 + 10


def test_a_custom_tool_counts_with_its_grammar() -> None:
    tool = {"type": "custom", "custom": {"name": "sql", "format": {"definition": "start: one two"}}}
    assert by_words(CHAT, messages=[], tools=[tool]).prompt_tokens == 3 + 12 + 7 + 1 + 3


@pytest.mark.parametrize(
    ("given_input", "tokens"),
    [
        ("one two", 2),
        (["one two", "three"], 3),
        ([1, 2, 3], 3),
        ([[1, 2], [3]], 3),
        ([], 0),
        (None, 0),
        ([{"type": "text", "text": "one two"}], 2),
        ([1, "two three"], 3),
    ],
)
@pytest.mark.parametrize("endpoint", ["embeddings", "completions"])
def test_inputs(endpoint: str, given_input: Any, tokens: int) -> None:
    member = "prompt" if endpoint == "completions" else "input"
    most = None if endpoint == "completions" else 0
    found = by_words(endpoint, **{member: given_input})
    assert (found.prompt_tokens, found.max_output_tokens) == (tokens, most)


def test_a_suffix_is_prompt() -> None:
    assert by_words("completions", prompt="one", suffix="two three").prompt_tokens == 3


@pytest.mark.parametrize(
    ("endpoint", "members", "most"),
    [
        (CHAT, {"max_tokens": 10}, 10),
        (CHAT, {"max_completion_tokens": 10}, 10),
        (CHAT, {"max_completion_tokens": 1, "max_tokens": 10}, 10),
        (CHAT, {"max_tokens": 10, "n": 3}, 30),
        (CHAT, {"max_tokens": 10, "n": 0}, 10),
        (CHAT, {"max_tokens": 10, "n": "2"}, 20),
        (CHAT, {"max_tokens": 0}, 0),
        (CHAT, {"max_tokens": None}, None),
        (CHAT, {"max_tokens": -1}, None),
        (CHAT, {"max_tokens": True}, None),
        (CHAT, {"max_tokens": 10.0}, 10),
        (CHAT, {"max_tokens": 10.5}, None),
        (CHAT, {"max_tokens": "10"}, 10),
        (CHAT, {"max_tokens": "ten"}, None),
        (CHAT, {"max_tokens": [10]}, None),
        (CHAT, {"max_tokens": 10**18, "n": 10**18}, MAX_TOKENS),
        (CHAT, {"max_tokens": 10**30}, MAX_TOKENS),
        (CHAT, {"max_output_tokens": 10}, None),
        ("completions", {"max_tokens": 10, "prompt": "x"}, 10),
        ("completions", {"max_tokens": 10, "prompt": "x", "max_completion_tokens": 1}, 10),
        ("completions", {"max_tokens": 10, "prompt": "x", "n": 2, "best_of": 5}, 50),
        ("completions", {"max_tokens": 10, "prompt": ["x", "y"], "n": 2}, 40),
        ("completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ("completions", {"max_tokens": 10, "prompt": [[1, 2], [3]]}, 20),
        ("responses", {"max_output_tokens": 10}, 10),
        ("responses", {"max_output_tokens": 10, "max_tokens": 99, "n": 5}, 10),
        ("embeddings", {"input": "x", "max_tokens": 10}, 0),
        ("audio/speech", {"input": "x", "max_tokens": 10}, None),
    ],
)
def test_the_most_an_answer_may_have(endpoint: str, members: dict[str, Any], most: int | None) -> None:
    assert by_words(endpoint, **members).max_output_tokens == most


def test_texts_are_counted_at_once() -> None:
    counter = Calls()
    estimate(json.dumps({"messages": COOKBOOK, "tools": [WEATHER]}).encode(), CHAT, O200K, counter)
    assert len(counter.made) == 1


MEMBERS = PromptMembers.__struct_fields__
INNER = (
    *prompts._TEXTS,
    *prompts._NESTED,
    *MEDIA,
    *["type", "url", "detail", "data", "format", "parameters", "properties", "items", "anyOf", "enum", "$defs"],
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(MEMBERS), JSON_VALUES), st.booleans())
def test_no_body_raises(members: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps(members, ensure_ascii=ascii_only).encode("utf-8", "replace")
    for endpoint in (CHAT, "completions", "responses", "embeddings"):
        found = estimate(body, endpoint, O200K, EXACT)
        assert found.prompt_tokens >= 0
        assert found.max_output_tokens is None or 0 <= found.max_output_tokens <= MAX_TOKENS
        assert 1 <= found.answers <= MAX_ANSWERS


@pytest.mark.parametrize(
    "odd",
    [
        b'"messages":[{"role":"user","content":"a\\ud83d b"}]',
        b'"messages":[{"content":"\\\\ud83d \\ud83d"}]',
        b'"best_of_all":1e999',
        b'"seed":' + b"9" * 5000,
        b'"messages":' + b'[{"content":' * 400 + b"1" + b"}]" * 400,
        b'"tools":[{"parameters":' + b'{"items":' * 800 + b"1" + b"}" * 800 + b"}]",
        b'"messages":[' + b"{}," * 300_000 + b"{}]",
    ],
    ids=["half a pair", "an escaped backslash", "inf", "digits", "deep parts", "deep schema", "many"],
)
def test_what_admission_takes_is_estimated(odd: bytes) -> None:
    body = b'{"model":"m",' + odd + b"}"
    read_metered(body)
    assert estimate(body, CHAT, O200K, EXACT).prompt_tokens > 0
