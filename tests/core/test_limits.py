"""Limits are read as they are documented, and those of key, plan and model apply as the configuration promises."""

from __future__ import annotations

import limits as notation
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.limits import KeyLimits, Terms, merged, parse_limit, parse_limits
from proxy.core.quota import MAX_AMOUNT, Calendar, Kind, Limit, Limits

_PER_MINUTE = parse_limit("60/minute", Kind.REQUESTS)
_PER_DAY = parse_limit("1000/day", Kind.REQUESTS)
_TOKENS = parse_limit("5000/minute", Kind.TOKENS)


@pytest.mark.parametrize(
    ("text", "amount", "window"),
    [
        ("60/minute", 60, 60),
        ("1/second", 1, 1),
        ("5 per 2 hours", 5, 7200),
        ("5/24hours", 5, 86_400),
        (" 7 / 90 SECONDS ", 7, 90),
        ("10000/day", 10_000, Calendar.DAY),
        ("1/1 MONTHS", 1, Calendar.MONTH),
        ("3/year", 3, Calendar.YEAR),
    ],
)
def test_counts_and_their_windows(text: str, amount: int, window: int | Calendar) -> None:
    assert parse_limit(text, Kind.TOKENS) == Limit(Kind.TOKENS, amount, window)


@pytest.mark.parametrize(
    ("text", "micro_usd"),
    [("2.50/day", 2_500_000), ("50/month", 50_000_000), ("0.000001/day", 1), ("0.1234567/day", 123_456)],
)
def test_money_is_whole_micro_usd(text: str, micro_usd: int) -> None:
    assert parse_limit(text, Kind.SPEND).amount == micro_usd


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/minute", "more than nothing"),
        ("0.0000009/day", "more than nothing"),
        ("1000000001/day", "at most 1000000000$"),
        ("5/0 minutes", "longer than nothing"),
        ("5/fortnight", "unknown window"),
        ("5/2 days", "of the calendar, one at a time"),
        ("5/12 months", "of the calendar, one at a time"),
        ("5/25 hours", "slides over more than a day"),
        ("ten/day", "an amount and a window, such as 2.50/day"),
        ("1.2.3/day", "an amount and a window"),
        ("٣/day", "an amount and a window"),
        ("5/minute;6/hour", "an amount and a window"),
        ("-5/minute", "an amount and a window"),
        ("5/minute\n6", "an amount and a window"),
        ("5", "an amount and a window"),
        ("", "an amount and a window"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_limit(text, Kind.SPEND)


def test_counts_are_whole() -> None:
    with pytest.raises(ValueError, match="whole amount"):
        parse_limit("2.5/day", Kind.REQUESTS)
    with pytest.raises(ValueError, match="such as 60/minute"):
        parse_limit("many", Kind.REQUESTS)


@given(
    st.integers(1, MAX_AMOUNT - 1),
    st.sampled_from(["/", " per ", " / "]),
    st.integers(1, 24) | st.none(),
    st.sampled_from(["second", "minutes", "Hour", "HOURS"]),
)
def test_sliding_windows_are_those_of_the_limits_package(
    amount: int, per: str, multiple: int | None, unit: str
) -> None:
    text = f"{amount}{per}{multiple or ''}{unit}"
    theirs = notation.parse(text)
    assert parse_limit(text, Kind.TOKENS) == Limit(Kind.TOKENS, theirs.amount, theirs.get_expiry())


def test_a_key_replaces_its_plan_kind_by_kind() -> None:
    plan = Terms(requests=(_PER_MINUTE, _PER_DAY), tokens=(_TOKENS,), concurrency=10)
    assert merged(plan, Terms()) == plan
    assert merged(plan, Terms(requests=())) == plan._replace(requests=())
    key = Terms((_PER_DAY,), parse_limits(["9/day"], Kind.TOKENS), parse_limits(["1/day"], Kind.SPEND), 2)
    assert merged(plan, key) == key


def test_nothing_said_is_nothing_limited() -> None:
    assert KeyLimits(Terms()).for_model("gpt-4o") == Limits()


def test_limits_narrowed_to_a_model_come_on_top() -> None:
    narrow = parse_limit("10/minute", Kind.REQUESTS, "gpt-4*")
    narrower = parse_limit("3/minute", Kind.REQUESTS, "gpt-4o")
    of_key = KeyLimits(Terms(requests=(_PER_MINUTE, narrow, narrower), tokens=(_TOKENS,), concurrency=2))
    assert of_key.for_model("llama") == Limits((_PER_MINUTE, _TOKENS), 2)
    assert of_key.for_model("gpt-4.1") == Limits((_PER_MINUTE, narrow, _TOKENS), 2)
    assert of_key.for_model("gpt-4o") == Limits((_PER_MINUTE, narrow, narrower, _TOKENS), 2)


def test_of_two_limits_of_one_window_the_smaller_applies() -> None:
    said = parse_limits(["60/minute", "50/60 seconds", "70/minute"], Kind.REQUESTS)
    assert KeyLimits(Terms(requests=said)).for_model("").windows == (_PER_MINUTE._replace(amount=50),)
