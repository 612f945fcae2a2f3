"""The short way through usual chunks finds the text that the general way finds, and is taken by nothing else."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import answers
from proxy.core.answers import EventAnswer
from proxy.core.usual_chunks import usual_text
from tests.fakes.recordings import DONE, FINISH, RECORDINGS, ROLE, delta
from tests.fakes.usage_recordings import event, plain, said

_TEXTS = st.text(max_size=12) | st.sampled_from(["\ud83d", "\ude00", '"', "\n\n", "},{", "[DONE]"])
_ODD = st.sampled_from([
    ROLE, FINISH, DONE, said("x", usage=plain(4, 1)), b": c\n\n", b"data: {}\n\n", b"data: [1]\n\n", b"data: x\n\n",
    event({"choices": [{"index": 1, "delta": {"content": "b"}}]}),
    event({"choices": [{"delta": {"content": "c"}}]}),
    event({"choices": [{"index": 0, "delta": {"content": "d", "refusal": "no"}}]}),
    event({"choices": [{"index": 0, "delta": {"content": "d"}}, {"index": 1, "delta": {"content": "e"}}]}),
    event({"choices": [{"index": 0, "delta": {"content": ["part"]}}]}),
    event({"choices": [{"index": 0, "delta": {"content": "f"}, "text": "g"}]}),
    event({"choices": [{"index": 0, "delta": {"content": "h"}, "finish_reason": ""}]}),
    event({"choices": [{"index": 0, "delta": {"content": "i"}}], "x_groq": {"usage": plain(1, 2)}}),
    event({"choices": [{"index": 0, "delta": {"content": "j"}}], "type": "response.completed"}),
    b'data: {"choices":[{"delta":{"content":"k"}}]},{"choices":[{"delta":{"content":"l"}}]}\n\n',
])  # fmt: skip


def _chunk(text: str) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None}).encode()


def _found(blocks: list[bytes]) -> tuple[object, ...]:
    """What a reader makes of batches that end where the blocks end."""
    answer = EventAnswer()
    for block in blocks:
        answer.saw(block)
        answer.catch_up()
    answer.finish()
    return answer.usage, answer.final, answer.lost, answer.faults, answer.text_chars, answer.take_texts()


@given(st.lists(st.lists(_TEXTS.map(_chunk) | _ODD, min_size=1, max_size=5).map(b"".join), max_size=5))
def test_both_ways_find_the_same(blocks: list[bytes]) -> None:
    with mock.patch.object(answers, "usual_text", return_value=None):
        general = _found(blocks)
    assert _found(blocks) == general


@given(st.lists(st.text(max_size=12), min_size=1))
def test_usual_chunks_go_the_short_way(texts: list[str]) -> None:
    assert usual_text(b"".join(map(_chunk, texts))) == "".join(texts)


def test_the_middle_of_a_recorded_answer_is_usual() -> None:
    body = RECORDINGS["openai"].body
    at = body.index(b'"content":"', body.index(b'"role"') + 60)
    start = body.rindex(b"\n\n", 0, at) + 2
    assert usual_text(body[start : body.index(b"\n\n", at) + 2])
    assert usual_text(ROLE + delta("a")) is not None


@pytest.mark.parametrize("odd", [FINISH, DONE, b"", b"data: {}\n\n", said("x", usage=plain(4, 1))])
def test_anything_else_does_not(odd: bytes) -> None:
    assert usual_text(odd) is None
