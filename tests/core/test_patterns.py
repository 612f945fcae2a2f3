"""The most specific pattern wins, whatever the order, and no name from a client costs much."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.patterns import PatternTable, Remembered, is_pattern


@pytest.mark.parametrize(
    ("patterns", "name", "winner"),
    [
        (["*", "gpt-4o"], "gpt-4o", "gpt-4o"),
        (["*", "gpt-*", "gpt-4o*"], "gpt-4o-mini", "gpt-4o*"),
        (["gpt-4o*", "gpt-4o"], "gpt-4o", "gpt-4o"),
        (["*-mini", "gpt-*"], "gpt-mini", "*-mini"),
        (["a*b*", "ab*"], "ab", "ab*"),
        (["a?", "a*"], "ab", "a?"),
        (["a*", "a?"], "ab", "a*"),
        (["gpt-*"], "GPT-4", None),
        (["gpt"], "gpt-4", None),
        (["a[b]*"], "ab", None),
        (["a[b]*"], "a[b]c", "a[b]*"),
        (["a.c*"], "abc", None),
        (["*"], "", "*"),
        (["?"], "", None),
        (["*"], "line\nbreak", "*"),
        ([], "anything", None),
    ],
)
def test_most_specific_pattern_wins(patterns: list[str], name: str, winner: str | None) -> None:
    assert PatternTable(patterns).match(name) == winner


@given(patterns=st.lists(st.text("ab*?", min_size=1, max_size=5), max_size=6), name=st.text("ab", max_size=6))
def test_winner_matches_and_nothing_more_literal_does(patterns: list[str], name: str) -> None:
    winner = PatternTable(patterns).match(name)
    matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]

    def literals(pattern: str) -> int:
        return len(pattern.replace("*", "").replace("?", ""))

    if winner is None:
        assert not matching
    elif name in patterns:
        assert winner == name
    else:
        assert winner in matching
        assert literals(winner) == max(map(literals, matching))


@given(patterns=st.lists(st.text("ab*", min_size=1, max_size=5), max_size=6), name=st.text("ab", max_size=400))
def test_second_answer_equals_the_first(patterns: list[str], name: str) -> None:
    table = PatternTable(patterns)
    assert table.match(name) == table.match(name)


def test_shows_the_order_in_which_it_looks() -> None:
    assert repr(PatternTable(["*", "b", "a*", "a"])) == "PatternTable(['a', 'b', 'a*', '*'])"


def test_names_of_clients_do_not_pile_up() -> None:
    table = PatternTable(["gpt-*"])
    for number in range(5000):
        table.match(f"gpt-{number}")
        table.match("x" * 300 + str(number))
    remembered = vars(table)["match"].__self__
    assert isinstance(remembered, Remembered)
    assert 0 < len(remembered) <= 1024
    assert max(map(len, remembered)) <= 256


@given(st.lists(st.sampled_from(["a", "b", "x" * 300])))
def test_what_is_remembered_is_what_was_found(names: list[str]) -> None:
    asked: list[str] = []

    def find(name: str) -> int:
        asked.append(name)
        return len(name)

    remembered = Remembered(find)
    assert [remembered[name] for name in names] == [len(name) for name in names]
    assert sorted(name for name in asked if len(name) == 1) == sorted({*names} - {"x" * 300})


def test_no_name_makes_a_pattern_slow() -> None:
    """With a backtracking search this would take longer than the universe has."""
    table = PatternTable(["*a" * 30 + "b"])
    began_s = time.thread_time()
    assert table.match("a" * 20_000) is None
    assert time.thread_time() - began_s < 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [("gpt-4o", False), ("", False), ("a[b]", False), ("a!.+", False), ("*", True), ("gpt-?", True), ("a*b", True)],
)
def test_a_pattern_is_what_stands_for_other_names(text: str, answer: bool) -> None:
    assert is_pattern(text) is answer


@given(text=st.text("ab[]!-.^$\\", max_size=5), name=st.text("ab[]!-.^$\\", max_size=5))
def test_what_is_no_pattern_stands_for_itself_alone(text: str, name: str) -> None:
    assert not is_pattern(text)
    assert PatternTable([text]).match(text) == text
    assert PatternTable([text, "?*"]).match(name) == (name if name == text else "?*" if name else None)
