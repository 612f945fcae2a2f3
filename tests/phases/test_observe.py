"""The observer: what each way an answer may end leads to, and that no fault of accounting gets out of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from proxy.core.answers import EventAnswer
from proxy.core.usage import Observation, Usage
from proxy.phases.observe import Counting, Observer
from tests.fakes.accounts import WordCounterBeside, observer
from tests.fakes.usage_recordings import said

if TYPE_CHECKING:
    from collections.abc import Sequence

SAID = Usage(5, 3)


@dataclass
class Reader:
    """A reader that has read what it is told: `texts` come one with each block that is seen."""

    usage: Usage | None = None
    final: bool = False
    lost: bool = False
    faults: int = 0
    texts: list[str] = field(default_factory=list)
    fault: Exception | None = None
    finished: bool = False
    is_error: bool = False
    _waiting: list[str] = field(default_factory=list)

    @property
    def text_chars(self) -> int:
        return sum(map(len, self._waiting))

    def saw(self, data: bytes) -> int:
        if self.fault is not None:
            raise self.fault
        self._waiting += self.texts[:1]
        del self.texts[:1]
        return self.text_chars

    def take_texts(self, most_chars: int | None = None) -> list[str]:
        text = "".join(self._waiting)
        end = len(text) if most_chars is None else most_chars
        self._waiting = [text[end:]]
        return [text[:end]]

    def catch_up(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.final = self.usage is not None

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(
    ("reader", "observation"),
    [
        (Reader(), Observation("counted", Usage(7, 0))),
        (Reader(texts=["two words"]), Observation("counted", Usage(7, 2))),
        (Reader(SAID, final=True, texts=["one two three four"]), Observation("exact", SAID)),
        (Reader(SAID, final=True, lost=True), Observation("exact", SAID)),
        # cumulative usage in the middle: true of the prompt, and of the output at least
        (Reader(SAID, texts=["one"]), Observation("counted", Usage(5, 3))),
        (Reader(SAID, texts=["one two three four"]), Observation("counted", Usage(5, 4))),
        (Reader(Usage(0, 3), texts=[""]), Observation("counted", Usage(7, 3))),
        (Reader(SAID, lost=True), Observation("unknown")),
        (Reader(lost=True, texts=["two words"]), Observation("unknown")),
        (None, Observation("unknown")),
    ],
)
async def test_the_grade(reader: Reader | None, observation: Observation) -> None:
    for way in ("at once", "beside"):
        fresh = None if reader is None else Reader(reader.usage, reader.final, reader.lost, 0, list(reader.texts))
        watching = observer(fresh)
        watching.saw(b"a block")
        watching.finish()
        seen = watching.observe(7) if way == "at once" else await watching.observe_beside(7)
        assert seen == observation
        assert fresh is None or fresh.finished


async def test_text_is_counted_as_it_piles_up_and_the_long_rest_beside_the_loop() -> None:
    beside = WordCounterBeside()
    reader = Reader(texts=["word " * 3000, "word " * 1000, "word " * 1000])
    watching = observer(reader, beside)
    watching.saw(b"")
    assert reader.text_chars == 15_000
    watching.saw(b"")
    assert reader.text_chars == 20_000 - 16_384, "counted, and no longer held"
    watching.saw(b"")
    watching.finish()
    assert watching.observe(0) is None
    assert await watching.observe_beside(0) == Observation("counted", Usage(0, 5000))
    assert sum(map(len, beside.texts)) == 25_000 - 16_384


def test_short_rests_and_known_usage_need_no_task() -> None:
    assert observer(None).observe(7) is not None
    for reader in (Reader(texts=["short"]), Reader(SAID, final=True, texts=["x" * 10_000])):
        watching = observer(reader)
        watching.saw(b"")
        assert watching.observe(7) is not None


def test_a_fault_ends_the_watching_and_is_counted() -> None:
    reader = Reader(fault=ZeroDivisionError(), faults=2)
    watching = observer(reader)
    watching.saw(b"a block")
    watching.saw(b"another")
    watching.finish()
    assert watching.faults == 1
    assert watching.observe(7) == Observation("unknown")
    assert observer(Reader(faults=2)).faults == 2


class Longest:
    """A counter by words that remembers how much it was given in one call."""

    def __init__(self) -> None:
        self.chars = 0

    def count(self, texts: Sequence[str], encoding: str) -> int:
        self.chars = max(self.chars, sum(map(len, texts)))
        return sum(len(text.split()) for text in texts)


@pytest.mark.parametrize("events", [1, 2, 40])
def test_large_events_are_counted_a_piece_at_a_time_and_little_waits(events: int) -> None:
    """A piece of 16,384 letters takes 3 ms at the worst; the 64 KB of an event at once would take 12."""
    draw, counter, reader = random.Random(2), Longest(), EventAnswer()
    watching = Observer(reader, Counting(counter, WordCounterBeside()), "o200k_base")
    words = "".join(draw.choices(["time ", "year ", "people ", "way "], k=12_000))
    for _ in range(events):
        watching.saw(said(words))
        assert reader.text_chars <= 32_768 + 1024, "or the rest of a word more"
        for _ in range(2):
            watching.saw(said("day ", index=1))
    watching.finish()
    assert 0 < counter.chars <= 16_384
    used = watching.observe(0)
    assert used is not None
    expected = pytest.approx(events * 12_002, rel=0.1)
    assert used.usage.output_tokens == expected, "what did not fit is counted by rule"


def test_whether_more_is_needed_can_be_asked_at_any_time() -> None:
    assert not observer(None).catch_up()
    assert not observer(Reader()).catch_up()
    watching = observer(Reader(SAID))
    assert not watching.has_final_usage
    assert watching.catch_up()
    broken = observer(Reader(SAID, fault=ZeroDivisionError()))
    assert not broken.catch_up()
    assert (broken.faults, broken.observe(7)) == (1, Observation("unknown"))
