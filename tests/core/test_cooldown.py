"""Which API key is used, and how long one rests that the upstream refused or limited."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cooldown import (
    ASKED_LONGEST_S,
    LIMITED_FIRST_S,
    LIMITED_LONGEST_S,
    REFUSED_FIRST_S,
    REFUSED_LONGEST_S,
    Credentials,
)


def rest_s(keys: Credentials, now_s: float) -> float:
    """How long the only key of `keys` rests, to a tenth of a second."""
    tenths = 0
    while not keys.is_ready(now_s + tenths / 10):
        tenths += 1
    return tenths / 10


def test_keys_are_used_in_turn() -> None:
    keys = Credentials(3)
    assert [keys.next(0) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_those_that_rest_are_counted() -> None:
    keys = Credentials(3)
    assert keys.cooling(0) == 0
    keys.cool(0, 10)
    keys.cool(2, 20)
    assert [keys.cooling(now_s) for now_s in (0, 9.9, 10, 19.9, 20)] == [2, 2, 1, 1, 0]


@pytest.mark.parametrize("count", [0, 1])
def test_an_upstream_without_keys_has_one_that_is_nothing(count: int) -> None:
    keys = Credentials(count)
    assert keys.next(0) == 0
    assert not keys.others(0, 0)
    keys.refused(0, 0)
    assert keys.next(0) == 0


def test_one_that_rests_is_left_out() -> None:
    keys = Credentials(3)
    keys.cool(1, 10.0)
    assert Counter(keys.next(9.9) for _ in range(100)) == {0: 50, 2: 50}
    assert 1 in {keys.next(10.0) for _ in range(3)}
    keys.cool(1, 20.0)
    keys.limited(1, 10.0, 3.0)
    assert 1 not in {keys.next(19.9) for _ in range(3)}, "the longer one counts"


def test_when_all_rest_the_one_that_is_ready_first_is_used() -> None:
    keys = Credentials(3)
    for place, until_s in enumerate((30.0, 10.0, 20.0)):
        keys.cool(place, until_s)
    assert [keys.next(5) for _ in range(3)] == [1, 1, 1]
    assert not keys.is_ready(5)
    assert keys.is_ready(10)


def test_whether_another_is_ready() -> None:
    keys = Credentials(2)
    assert keys.others(0, 0)
    keys.cool(1, 10.0)
    assert not keys.others(0, 9.9)
    assert keys.others(1, 9.9)
    assert keys.others(0, 10.0)


def test_a_refused_key_rests_twice_as_long_each_time() -> None:
    keys, now_s, rests = Credentials(1), 0.0, []
    for _ in range(7):
        keys.refused(0, now_s)
        rests.append(rest_s(keys, now_s))
        now_s += rests[-1]
    assert rests == [REFUSED_FIRST_S, 60, 120, 240, 480, REFUSED_LONGEST_S, REFUSED_LONGEST_S]
    keys.succeeded(0)
    keys.refused(0, now_s)
    assert rest_s(keys, now_s) == REFUSED_FIRST_S


def test_a_limited_key_rests_for_as_long_as_it_is_told_or_grows() -> None:
    keys, now_s, rests = Credentials(1), 0.0, []
    for _ in range(8):
        keys.limited(0, now_s, None)
        rests.append(rest_s(keys, now_s))
        now_s += rests[-1]
    assert rests == [LIMITED_FIRST_S, 2, 4, 8, 16, 32, LIMITED_LONGEST_S, LIMITED_LONGEST_S]
    keys.limited(0, now_s, 20.0)
    assert rest_s(keys, now_s) == 20
    keys.limited(0, now_s, 1e9)
    assert rest_s(keys, now_s) == ASKED_LONGEST_S


def test_many_answers_to_one_incident_are_one() -> None:
    keys = Credentials(1)
    for _ in range(20):
        keys.limited(0, 0.0, None)
        keys.refused(0, 0.5)
    assert rest_s(keys, 0.0) == LIMITED_FIRST_S


def test_an_answer_to_what_was_asked_before_does_not_end_a_rest() -> None:
    keys = Credentials(2)
    keys.limited(0, 0.0, 20.0)
    keys.succeeded(0)
    assert {keys.next(19.9) for _ in range(4)} == {1}


happenings = st.tuples(
    st.floats(0, 100),
    st.integers(0, 4),
    st.sampled_from(["refused", "limited", "told", "succeeded"]),
)


@given(st.integers(1, 5), st.lists(happenings, max_size=50))
def test_a_ready_key_is_always_preferred_and_none_is_banished(count: int, events: list[tuple[float, int, str]]) -> None:
    keys, now_s = Credentials(count), 0.0
    for pause_s, number, what in events:
        now_s += pause_s
        place = number % count
        match what:
            case "refused":
                keys.refused(place, now_s)
            case "limited":
                keys.limited(place, now_s, None)
            case "told":
                keys.limited(place, now_s, pause_s * 100)
            case _:
                keys.succeeded(place)
        until_s = [credential.until_s for credential in keys._credentials]
        ready = {each for each in range(count) if until_s[each] <= now_s}
        used = Counter(keys.next(now_s) for _ in range(2 * count))
        assert keys.is_ready(now_s) == bool(ready)
        assert [keys.others(each, now_s) for each in range(count)] == [bool(ready - {each}) for each in range(count)]
        if ready:
            assert used.keys() == ready
            assert max(used.values()) - min(used.values()) <= 1, "in turn"
        else:
            assert {until_s[each] for each in used} == {min(until_s)}
    later_s = now_s + max(ASKED_LONGEST_S, REFUSED_LONGEST_S)
    assert {keys.next(later_s) for _ in range(count)} == set(range(count))
