"""How simulated answers are cut and counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.answers import IMAGE_TOKENS, Ask, answer, completion_tokens, count_messages, pieces_of
from proxy.simulator.models import Script


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces_of(text)) == text


def test_prompts_are_counted_by_the_cookbook_rule() -> None:
    assert count_messages([{"role": "user", "content": "Say this is a test"}]) == 12  # as recorded from OpenAI
    assert count_messages([{"role": "user", "name": "ann", "content": "Say this is a test"}]) == 14
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    parts = [{"type": "text", "text": "Say this is a test"}, image]
    assert count_messages([{"role": "user", "content": parts}]) == 12 + IMAGE_TOKENS


@given(length=st.integers(0, 400), maximum=st.none() | st.integers(1, 400), choices=st.integers(1, 3), prompt=st.text())
def test_an_answer_has_the_length_asked_for_and_never_more_than_its_maximum(
    length: int, maximum: int | None, choices: int, prompt: str
) -> None:
    ask = Ask(
        model="sim",
        script=Script(answer_tokens=length),
        stream=True,
        include_usage=True,
        prompts=(prompt,),
        prompt_tokens=1,
        choices_per_prompt=choices,
        max_tokens=maximum,
    )
    answers = answer(ask)
    expected = length if maximum is None else min(length, maximum)
    assert [len(choice.deltas) for choice in answers] == [expected] * choices
    assert completion_tokens(answers) == expected * choices
    assert {choice.finish_reason for choice in answers} == {"length" if expected < length else "stop"}
    assert answer(ask) == answers
