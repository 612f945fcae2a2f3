"""A body that is no stream is read at its end, for its usage and its text, or lost; never half believed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.core.answer_body import MAX_BODY_BYTES, BodyAnswer
from proxy.core.usage import Usage
from tests.fakes.usage_recordings import BODIES, plain


def whole(body: bytes, size: int = MAX_BODY_BYTES, *, input_only: bool = False) -> BodyAnswer:
    answer = BodyAnswer(input_only=input_only)
    for at in range(0, len(body), size):
        answer.saw(body[at : at + size])
    answer.finish()
    return answer


def found(answer: BodyAnswer) -> tuple[Any, ...]:
    return answer.usage, answer.final, answer.lost, answer.faults, answer.take_texts()


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("padding", [0, MAX_BODY_BYTES])
def test_the_usage_of_every_body(name: str, padding: int) -> None:
    answer = whole(b" " * 3 + BODIES[name].body + b"\n" * padding, 1000)
    assert answer.usage == BODIES[name].usage
    assert answer.final == (answer.usage is not None)
    assert answer.faults == 0
    assert answer.lost == (padding > 0)
    if name.endswith("error"):
        assert answer.take_texts() == []


@pytest.mark.parametrize("body", [b"not json", b'{"choices":[{"mess', b"x" * 100_000, b"\x1f\x8b\x08" * 100])
def test_a_body_that_cannot_be_read_is_lost(body: bytes) -> None:
    answer = whole(body)
    assert (answer.usage, answer.lost, answer.take_texts()) == (None, True, [])
    if len(body) <= MAX_BODY_BYTES:
        assert answer.faults == (not body.startswith(b"{"))


def test_a_body_broken_off_behind_its_usage_has_said_it() -> None:
    answer = whole(b'{"usage":{"prompt_tokens":3,"completion_tokens":4},"choices":[{"mess')
    assert (answer.usage, answer.final, answer.faults) == (Usage(3, 4), True, 0)


@pytest.mark.parametrize("body", [b"", b"\n   \n", b"\xef\xbb\xbf", b" " * (MAX_BODY_BYTES + 1)])
def test_a_body_of_nothing_is_lost(body: bytes) -> None:
    assert found(whole(body)) == (None, False, True, 0, [])


@pytest.mark.parametrize("status", ["queued", "in_progress"])
@pytest.mark.parametrize("usage", [None, plain(4, 0)])
def test_a_response_that_is_not_made_yet_is_lost(status: str, usage: Any) -> None:
    body = {"object": "response", "status": status, "background": True, "output": [], "usage": usage}
    answer = whole(json.dumps(body).encode())
    assert (answer.final, answer.lost) == (False, True)
    made = whole(json.dumps(body | {"status": "completed", "usage": plain(4, 1)}).encode())
    assert (made.usage, made.final, made.lost) == (Usage(4, 1), True, False)


def test_a_body_with_an_error_has_no_output() -> None:
    answer = whole(b'{"error":{"code":502},"choices":[{"message":{"content":"partial"}}]}')
    assert found(answer) == (None, False, False, 0, [])


def test_a_body_is_read_at_its_end_alone() -> None:
    answer = BodyAnswer()
    answer.saw(b'{"usage":{"prompt_tokens":3,')
    answer.catch_up()
    answer.saw(b'"completion_tokens":4}}')
    answer.finish()
    assert (answer.usage, answer.lost, answer.faults) == (Usage(3, 4), False, 0)


def test_embeddings_have_no_output() -> None:
    assert whole(b'{"usage":{"total_tokens":3}}', input_only=True).usage == Usage(3, 0)
    assert whole(b'{"usage":{"total_tokens":3}}').usage is None


def test_texts_are_not_gathered_where_the_usage_is_believed() -> None:
    said = {"usage": plain(3, 4), "choices": [{"message": {"content": "hello"}}]}
    answer = whole(json.dumps(said).encode())
    assert found(answer) == (Usage(3, 4), True, False, 0, [])
    unbelieved = whole(json.dumps(said | {"usage": plain(0, 0)}).encode())
    assert found(unbelieved) == (None, False, False, 0, ["hello"])
