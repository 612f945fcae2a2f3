"""An estimate is bounded: in the work it takes whatever the prompt, and in what it multiplies."""

from __future__ import annotations

import json
import random
import string
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy import tokenizers
from proxy.core.prompts import MAX_ANSWERS, MAX_COUNTED_CHARS, Estimate, estimate
from proxy.core.tokens import MAX_TOKENS, O200K

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = "chat/completions"
COMPLETIONS = "completions"


class CharCounter:
    """A token is a character."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def count(self, texts: Sequence[str], encoding: str) -> int:
        self.texts += texts
        return sum(map(len, texts))


def of(endpoint: str, counter: CharCounter | None = None, **members: Any) -> Estimate:
    return estimate(json.dumps(members, ensure_ascii=False).encode(), endpoint, O200K, counter or CharCounter())


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [
        (["x" * MAX_COUNTED_CHARS], MAX_COUNTED_CHARS),
        (["x" * (MAX_COUNTED_CHARS + 300)], MAX_COUNTED_CHARS + 100),
        (["海" * (MAX_COUNTED_CHARS + 300)], MAX_COUNTED_CHARS + 300),
        (["x" * (MAX_COUNTED_CHARS - 10), "y" * 310, "", "z" * 600], MAX_COUNTED_CHARS + 300),
        (["x"] * 5, 5),
    ],
    ids=["all", "more", "more of three bytes", "several", "little"],
)
def test_text_beyond_what_is_counted_counts_by_its_length(texts: list[str], tokens: int) -> None:
    counter = CharCounter()
    assert of(COMPLETIONS, counter, prompt=texts).prompt_tokens == tokens
    assert sum(map(len, counter.texts)) == min(MAX_COUNTED_CHARS, sum(map(len, texts)))


def test_the_longest_body_that_is_made_to_take_long_takes_no_longer_than_what_is_counted() -> None:
    """Of 25 MB of letters all would take eight times as long as two million characters; here it may take twice."""
    exact = tokenizers.load([O200K])
    block = "".join(random.Random(3).choices(string.ascii_lowercase, k=30_011))
    text = (block * 840)[:25_000_000]

    def took_s(chars: int) -> float:
        body = json.dumps({"model": "m", "prompt": text[:chars]}).encode()
        began_s = time.thread_time()
        assert estimate(body, COMPLETIONS, O200K, exact).prompt_tokens > chars // 5
        return time.thread_time() - began_s

    assert min(took_s(len(text)) for _ in range(2)) < 2 * took_s(MAX_COUNTED_CHARS) + 0.1


@pytest.mark.parametrize(
    ("endpoint", "members", "answers"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 128}, 128),
        (CHAT, {"n": "3"}, 3),
        (CHAT, {"n": None, "best_of": 7}, 1),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": -4}, 1),
        (CHAT, {"n": [9]}, 1),
        (CHAT, {"n": 10**18}, MAX_ANSWERS),
        (COMPLETIONS, {"prompt": "a"}, 1),
        (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 5}, 5),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}, 4),
        (COMPLETIONS, {"prompt": [1, 2, 3], "n": 2}, 2),
        (COMPLETIONS, {"prompt": [[1, 2], [3]], "best_of": 3}, 6),
        (COMPLETIONS, {"prompt": ["a"] * 1000, "n": 10**18}, MAX_ANSWERS),
        ("responses", {"input": "a", "n": 5}, 1),
        ("embeddings", {"input": ["a", "b"], "n": 5}, 1),
        ("audio/speech", {"input": "a", "n": 5}, 1),
    ],
)
def test_how_many_answers_are_asked_for(endpoint: str, members: dict[str, Any], answers: int) -> None:
    assert of(endpoint, **members).answers == answers
    each = of(endpoint, **members, max_tokens=10).max_output_tokens
    if endpoint in {CHAT, COMPLETIONS}:
        assert each == 10 * answers


def test_no_product_is_beyond_what_may_be_used() -> None:
    assert of(CHAT, n=MAX_ANSWERS, max_tokens=MAX_TOKENS).max_output_tokens == MAX_TOKENS
