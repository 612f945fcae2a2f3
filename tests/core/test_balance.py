"""Which upstream is chosen: by weight while loads are even, the less loaded otherwise."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.balance import choose


@dataclass
class Place:
    weight: float = 1.0
    in_flight: int = 0


def shares(places: list[Place], times: int = 20_000) -> list[float]:
    """Of each place, if nothing changes between choices."""
    draw = random.Random(1).random
    chosen = Counter(id(choose(places, draw)) for _ in range(times))
    return [chosen[id(place)] / times for place in places]


def served(places: list[Place], in_flight: int, times: int = 20_000) -> list[float]:
    """The shares when so many are always in flight, and any of them may be the next to end."""
    chance = random.Random(2)
    running, counts = list[Place](), Counter[int]()
    for _ in range(times):
        if len(running) == in_flight:
            running.pop(chance.randrange(in_flight)).in_flight -= 1
        place = choose(places, chance.random)
        place.in_flight += 1
        running.append(place)
        counts[id(place)] += 1
    return [counts[id(place)] / times for place in places]


def test_the_only_one_is_chosen_without_a_draw() -> None:
    only = Place(weight=0.0, in_flight=7)
    assert choose([only], lambda: pytest.fail("nothing to draw")) is only
    with pytest.raises(ValueError, match="nobody"):
        choose([], random.random)


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [99, 1], [5, 3, 2], [1, 1, 1, 1], [0.002, 0.001]])
def test_idle_ones_are_chosen_by_weight(weights: list[float]) -> None:
    expected = [weight / sum(weights) for weight in weights]
    assert shares([Place(weight) for weight in weights]) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("in_flight", [1, 2, 4, 16, 100])
def test_load_is_shared_by_weight_however_much_there_is(in_flight: int) -> None:
    three_to_one = served([Place(3), Place(1)], in_flight)
    assert three_to_one == pytest.approx([0.75, 0.25], abs=0.06)
    assert served([Place(), Place(), Place()], in_flight) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_the_idle_one_of_two_is_chosen_and_of_many_nearly_always_a_less_loaded() -> None:
    assert shares([Place(in_flight=1), Place()], 1000) == [0.0, 1.0]
    assert shares([Place(in_flight=10), Place(in_flight=9)], 1000) == [0.0, 1.0]
    assert shares([Place(in_flight=5), Place(in_flight=5), Place(), Place(in_flight=5)])[2] == pytest.approx(
        0.5, abs=0.02
    )
    assert shares([Place(3, in_flight=3), Place(1)], 1000) == [0.0, 1.0]
    assert shares([Place(3, in_flight=2), Place(1, in_flight=2)], 1000) == [1.0, 0.0]


def test_the_worst_of_many_is_never_chosen() -> None:
    assert shares([Place(in_flight=n) for n in (3, 5, 4)], 1000)[1] == 0.0


def test_weight_zero_is_chosen_only_among_its_like() -> None:
    assert shares([Place(0.0), Place(1.0, in_flight=1000)], 1000) == [0.0, 1.0]
    assert shares([Place(0.0), Place(0.0), Place(0.0)]) == pytest.approx([1 / 3] * 3, abs=0.015)
    assert shares([Place(0.0, in_flight=1), Place(0.0)], 1000) == [0.0, 1.0]


places = st.builds(Place, st.floats(0, 1e6), st.integers(0, 10_000))


@given(st.lists(places, min_size=1, max_size=8), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2))
def test_whatever_is_drawn_somebody_sensible_is_chosen(candidates: list[Place], draws: list[float]) -> None:
    left = iter(draws)
    chosen = choose(candidates, lambda: next(left))
    assert chosen in candidates
    assert chosen.weight > 0 or all(place.weight == 0 for place in candidates)
    loads = sorted(place.in_flight / place.weight for place in candidates if place.weight > 0)
    if len(loads) > 1 and chosen.weight > 0:
        others = [place for place in candidates if place is not chosen and place.weight > 0]
        assert any((other.in_flight + 1) / other.weight >= chosen.in_flight / chosen.weight for other in others)
