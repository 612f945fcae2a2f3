"""The fair queue against a plain list: nobody lost, nobody served twice, each in his order, nobody far behind."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.fair_queue import FairQueue

MAX_WAITING, MAX_BYTES = 12, 100
PLACES = ("a", "b", "c")
WEIGHTS = {"p": 1.0, "q": 1.0, "r": 3.0, "s": 0.37, "t": 1e6, "u": 1e-300}


class Waiting(NamedTuple):
    number: int
    key: str
    places: frozenset[str]
    size_bytes: int


class FairQueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.subject: FairQueue[Waiting] = FairQueue(max_waiting=MAX_WAITING, max_bytes=MAX_BYTES)
        self.waiting: list[Waiting] = []
        self.numbers = itertools.count()
        self.since: dict[tuple[str, str], dict[str, int]] = {}  # per place and key: who was served since its turn

    @rule(
        key=st.sampled_from(sorted(WEIGHTS)),
        places=st.frozensets(st.sampled_from(PLACES), min_size=1),
        size_bytes=st.integers(0, 40),
    )
    def push(self, key: str, places: frozenset[str], size_bytes: int) -> None:
        item = Waiting(next(self.numbers), key, places, size_bytes)
        held_bytes = sum(other.size_bytes for other in self.waiting)
        fits = len(self.waiting) < MAX_WAITING and held_bytes + size_bytes <= MAX_BYTES
        assert self.subject.push(key, WEIGHTS[key], item, places, size_bytes) == fits
        if fits:
            self.waiting.append(item)

    @rule(place=st.sampled_from(PLACES))
    def pop(self, place: str) -> None:
        here = [item for item in self.waiting if place in item.places]
        item = self.subject.pop(place)
        assert (item is None) == (not here)
        if item is None:
            return
        assert item == next(other for other in here if other.key == item.key), "the first of its key that may be served"
        self.waiting.remove(item)
        self.since.pop((place, item.key), None)
        for key in {other.key for other in here} - {item.key}:
            served = self.since.setdefault((place, key), {})
            served[item.key] = served.get(item.key, 0) + 1
            # between two turns of its own, others get their share of one turn, and the item that rounds it up
            assert (
                served[item.key] <= Fraction(WEIGHTS[item.key]) / Fraction(WEIGHTS[key]) * (1 + Fraction(1, 10**5)) + 2
            )

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert self.subject.remove(item)
        assert not self.subject.remove(item)

    @rule(place=st.sampled_from(PLACES))
    def serve_all(self, place: str) -> None:
        """The positions at one place come true where nothing waits for another too."""
        here = [item for item in self.waiting if place in item.places]
        expected = {item: self.subject.position(item) for item in here if item.places == {place}}
        for position in range(len(here)):
            item = self.subject.pop(place)
            assert item is not None
            assert expected.get(item, position) == position
            self.waiting.remove(item)
        assert self.subject.pop(place) is None

    @invariant()
    def it_holds_what_waits_and_nothing_else(self) -> None:
        assert len(self.subject) == len(self.waiting)
        assert self.subject.held_bytes == sum(item.size_bytes for item in self.waiting)
        for place in PLACES:
            assert self.subject.waiting(place) == sum(place in item.places for item in self.waiting)
        assert self.subject._places.keys() == {place for item in self.waiting for place in item.places}
        for place, ring in self.subject._places.items():
            assert ring.turns.keys() == {item.key for item in self.waiting if place in item.places}
        for place, key in list(self.since):
            if place not in self.subject._places or key not in self.subject._places[place].turns:
                del self.since[place, key]

    @invariant()
    def nobody_is_ahead_or_behind_by_more_than_a_turn(self) -> None:
        """A deficit, in items: what a key has earned since it was served last; 1 pays for the next."""
        for ring in self.subject._places.values():
            for turn in ring.turns.values():
                assert 0 <= turn.due[0] - ring._now <= turn.length


TestFairQueueMachine = FairQueueMachine.TestCase
TestFairQueueMachine.settings = settings(max_examples=100, stateful_step_count=60)
