"""A usage object is read in every dialect, and disbelieved where it cannot be true."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from proxy.core.answer_usage import _read_any, read_usage
from proxy.core.tokens import MAX_TOKENS
from proxy.core.usage import Usage

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(
    [
        "type",
        "seconds",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "input_tokens",
        "output_tokens",
        "prompt_tokens_details",
        "output_tokens_details",
        "prompt_cache_hit_tokens",
        "cache_creation_input_tokens",
    ]
)
details = st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "reasoning_tokens"]), json_values
)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, Usage(3, 2)),
        ({"input_tokens": 3, "output_tokens": 2}, Usage(3, 2)),
        ({"prompt_tokens": 3, "total_tokens": 5}, Usage(3, 2)),
        ({"completion_tokens": 2, "total_tokens": 5}, Usage(3, 2)),
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
        ({"prompt_tokens": 8, "total_tokens": 6}, Usage(8, 0)),
        ({"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 5}, Usage(3, 2)),
        ({"prompt_tokens": 3.0, "completion_tokens": 2.9}, Usage(3, 2)),
        ({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135}, Usage(32, 103)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": -1}, Usage(3, 2)),
        ({"type": "tokens", "input_tokens": 14}, Usage(14, 0)),
        ({"type": "duration", "seconds": 1.5}, Usage(audio_s=1.5)),
        ({"prompt_tokens": MAX_TOKENS, "completion_tokens": 1}, Usage(MAX_TOKENS, 1)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": MAX_TOKENS + 1}, Usage(3, 2)),
    ],
)
def test_what_is_believed(said: dict[str, Any], usage: Usage) -> None:
    assert read_usage(said) == usage


@pytest.mark.parametrize(
    "said",
    [
        None,
        7,
        [],
        {},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": "3", "completion_tokens": "2"},
        {"prompt_tokens": True, "completion_tokens": True},
        {"prompt_tokens": -3, "completion_tokens": 2},
        {"prompt_tokens": 3, "completion_tokens": -2, "total_tokens": 5},
        {"prompt_tokens": MAX_TOKENS + 1, "completion_tokens": 2},
        {"prompt_tokens": 3, "completion_tokens": MAX_TOKENS + 1},
        {"prompt_tokens": 2**53 - 1, "completion_tokens": 1},
        {"prompt_tokens": 10**400, "completion_tokens": 2},
        {"prompt_tokens": float("inf"), "completion_tokens": 2},
        {"prompt_tokens": float("nan"), "completion_tokens": 2},
        {"prompt_tokens": 3},
        {"completion_tokens": 3},
        {"total_tokens": 3},
        {"type": "duration", "seconds": 0},
        {"type": "duration", "seconds": "3"},
        {"type": "duration", "seconds": float("inf")},
        {"type": "duration", "seconds": -1},
    ],
)
def test_what_is_not_believed(said: object) -> None:
    assert read_usage(said) is None


def test_an_endpoint_without_output_needs_no_word_of_it() -> None:
    assert read_usage({"total_tokens": 3}, input_only=True) == Usage(3, 0)
    assert read_usage({"prompt_tokens": 3}, input_only=True) == Usage(3, 0)
    assert read_usage({"total_tokens": 0}, input_only=True) is None


def test_a_detail_is_never_more_than_its_total() -> None:
    said = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 11, "audio_tokens": -1, "image_tokens": "2"},
        "completion_tokens_details": {"reasoning_tokens": 2**70, "audio_tokens": 6},
        "cache_creation_input_tokens": 12,
    }
    assert read_usage(said) == Usage(10, 5, cached_tokens=10, cache_write_tokens=10, audio_output_tokens=5)


@pytest.mark.parametrize("name", ["prompt_cache_hit_tokens", "cache_read_input_tokens"])
def test_cached_input_has_several_names(name: str) -> None:
    said = {"prompt_tokens": 10, "completion_tokens": 5, name: 4}
    assert read_usage(said) == Usage(10, 5, cached_tokens=4)
    said["prompt_tokens_details"] = {"cached_tokens": 3}  # type: ignore[assignment]
    assert read_usage(said) == Usage(10, 5, cached_tokens=3)


@given(st.dictionaries(members, st.integers(-5, 2 * MAX_TOKENS) | json_values | details), st.booleans())
def test_whatever_is_said_is_consistent_or_not_believed(said: dict[str, Any], input_only: bool) -> None:
    usage = read_usage(said, input_only=input_only)
    if usage is None:
        return
    *tokens, audio_s = astuple(usage)
    assert all(0 <= each <= MAX_TOKENS for each in tokens)
    assert 0 <= audio_s <= 366 * 86400
    assert usage != Usage()
    assert max(tokens[2:6]) <= usage.input_tokens
    assert max(tokens[6:10]) <= usage.output_tokens


_figures: st.SearchStrategy[Any] = st.integers(-2, 20) | st.sampled_from(
    [None, True, 3.0, 2.5, MAX_TOKENS, MAX_TOKENS + 1, 2**70, "3", []]
)
_usual = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": _figures,
        "completion_tokens": _figures,
        "total_tokens": _figures,
        "prompt_tokens_details": st.none()
        | st.dictionaries(
            st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens"]),
            _figures,
        ),
        "completion_tokens_details": st.none()
        | st.dictionaries(
            st.sampled_from(
                ["reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"]
            ),
            _figures,
        ),
        "input_tokens": _figures,
        "queue_time": st.just(0.1),
    },
)


@given(_usual, st.booleans())
def test_the_short_way_reads_what_the_long_one_does(said: dict[str, Any], input_only: bool) -> None:
    assert read_usage(said, input_only=input_only) == _read_any(said, input_only=input_only)
