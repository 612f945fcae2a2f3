"""Output text is found wherever it stands, counted once, and kept apart by who says it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.answer_events import read_json
from proxy.core.answer_texts import MAX_TEXTS, AnswerTexts


def read(data: Any) -> Any:
    said = read_json(json.dumps(data).encode())
    assert said is not None
    return said


def of_chunks(*choices: Any) -> AnswerTexts:
    texts = AnswerTexts()
    for choice in choices:
        for each in read({"choices": [choice]}).choices:
            texts.add_choice(each)
    return texts


def of_events(*events: Any) -> AnswerTexts:
    texts = AnswerTexts()
    for event in events:
        texts.add_event(read(event))
    return texts


def delta(index: int = 0, **members: Any) -> Any:
    return {"index": index, "delta": members, "finish_reason": None}


def call(index: int, arguments: str, name: str | None = None) -> Any:
    return {"index": index, "function": {"arguments": arguments, **({"name": name} if name else {})}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (delta(content="a"), ["a"]),
        (delta(content=""), []),
        (delta(content=None, refusal="no"), ["no"]),
        (delta(content="a", reasoning_content="hm", reasoning="hm"), ["a", "hm"]),
        (delta(reasoning="hm"), ["hm"]),
        (delta(reasoning_content="h", reasoning="m"), ["hm"]),
        (delta(content=[{"type": "text", "text": "a"}, 7, {"type": "reference"}]), ["a"]),
        (delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]), ["hm"]),
        (delta(tool_calls=[call(0, "{}", "f"), call(1, "[]", "g")]), ["f{}", "g[]"]),
        (delta(tool_calls=[{"type": "custom", "custom": {"name": "f", "input": "x"}}]), ["fx"]),
        (delta(function_call={"name": "f", "arguments": "{}"}), ["f{}"]),
        (delta(audio={"transcript": "a"}), ["a"]),
        ({"index": 0, "text": "a", "finish_reason": None}, ["a"]),
        ({"index": 0, "text": "a", "delta": {"content": "a"}}, ["a"]),
        ({"index": 0, "text": "", "delta": {"content": "a"}}, ["a"]),
        ({"index": 0, "finish_reason": "stop"}, []),
    ],
)
def test_the_text_of_a_chunk(choice: Any, expected: list[str]) -> None:
    texts = of_chunks(choice)
    assert sorted(texts.take()) == expected
    assert not texts.not_text


def test_interleaved_voices_are_kept_apart() -> None:
    texts = of_chunks(
        delta(0, content="on"),
        delta(1, content="u"),
        delta(0, reasoning="h"),
        delta(0, content="e"),
        delta(1, content="n"),
        delta(0, tool_calls=[call(0, '{"a', "f"), call(1, "[", "g")]),
        delta(0, tool_calls=[call(1, "]"), call(0, '":1}')]),
    )
    texts.join()
    assert texts.chars == 3 + 2 + 1 + len('f{"a":1}') + 3
    assert texts.take() == ["one", "un", "h", 'f{"a":1}', "g[]"]
    assert texts.chars == 0
    assert texts.take() == []


def test_sound_is_no_text() -> None:
    assert of_chunks(delta(audio={"data": "AAAA", "transcript": "a"})).not_text
    assert of_events({"type": "speech.audio.delta", "audio": "AAAA"}).not_text
    assert of_events({"type": "image_generation.partial_image", "b64_json": "AAAA"}).not_text


def test_the_text_of_events() -> None:
    texts = of_events(
        {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call", "name": "f"}},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "a"},
        {"type": "response.reasoning_summary_text.delta", "output_index": 2, "delta": "hm"},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "b"},
        {"type": "response.output_text.done", "output_index": 0, "text": "ab"},
        {"type": "response.output_text.delta", "output_index": 0, "delta": {"not": "text"}},
        {"type": "transcript.text.delta", "delta": "c"},
        {"type": "thread.message.delta", "delta": {"content": []}},
    )
    assert texts.take() == ["f", "{}", "ab", "hm", "c"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": [{"message": {"content": "a", "refusal": None, "reasoning": "hm"}}]}, ["a", "hm"]),
        ({"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}, ["f{}"]),
        ({"choices": [{"text": "a", "index": 0}, {"text": "b", "index": 1}]}, ["a", "b"]),
        ({"text": "a", "usage": None}, ["a"]),
        (
            {
                "text": {"format": {"type": "text"}},
                "output": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                    {"type": "message", "content": [{"text": "a"}, {"refusal": "no"}, {"text": 7}]},
                    {"type": "function_call", "name": "f", "arguments": "{}"},
                    7,
                ],
            },
            ["ano", "f{}", "hm"],
        ),
    ],
)
def test_the_text_of_a_body(body: Any, expected: list[str]) -> None:
    texts = AnswerTexts()
    texts.add_body(read(body))
    assert sorted(texts.take()) == expected


def test_lone_surrogates_become_text_that_can_be_counted() -> None:
    texts = of_chunks(delta(content="a\ud83c"), delta(content="\udf0ab"))
    (text,) = texts.take()
    assert text == "a??b"


def test_an_upstream_cannot_open_any_number_of_texts() -> None:
    texts = of_chunks(*(delta(index, content="ab") for index in range(3 * MAX_TEXTS)))
    taken = texts.take()
    assert len(taken) == MAX_TEXTS + 1
    assert sum(map(len, taken)) == 6 * MAX_TEXTS


def test_no_more_is_taken_than_is_asked_for_and_the_rest_waits() -> None:
    words = "one two three four " * 100
    texts = of_chunks(delta(content=words), delta(1, content="x" * 50))
    (first,) = texts.take(1500)
    assert 1490 < len(first) <= 1500
    assert words[len(first)] == " ", "a word stays whole"
    assert texts.chars == len(words) + 50 - len(first)
    assert texts.take(0) == []
    assert texts.take(50) == ["x" * 50]
    assert texts.take(10_000) == [words[len(first) :]]
    assert (texts.chars, texts.take()) == (0, [])


@given(st.lists(st.text("ab \n", max_size=40), max_size=6), st.integers(1, 50))
def test_taken_bit_by_bit_every_character_is_taken_once(contents: list[str], most_chars: int) -> None:
    texts = of_chunks(*(delta(index, content=content) for index, content in enumerate(contents)))
    texts.join()
    taken = []
    while texts.chars:
        bit = texts.take(most_chars)
        assert 0 < sum(map(len, bit)) <= most_chars
        taken += bit
    assert sorted("".join(taken)) == sorted("".join(contents))
