"""What a prompt is read from may hold anything, but may not be more than can be walked."""

from __future__ import annotations

import pytest

from proxy.core.prompt_members import MAX_STRUCTURE, read_prompt


def test_members_are_taken_as_they_are() -> None:
    read = read_prompt(b'{"messages":7,"n":"two","x":1}')
    assert (read.messages, read.n, read.prompt) == (7, "two", None)


def test_half_a_surrogate_pair_becomes_some_character() -> None:
    assert read_prompt(rb'{"prompt":"a \ud83d"}').prompt == "a \ufffd"


def test_what_is_too_much_to_walk_is_refused_and_long_text_is_not() -> None:
    read_prompt(b'{"prompt":"%b"}' % (b"x" * (2 * MAX_STRUCTURE)))
    with pytest.raises(ValueError, match="more than may be walked"):
        read_prompt(b'{"prompt":[%b0]}' % (b"0," * MAX_STRUCTURE))
