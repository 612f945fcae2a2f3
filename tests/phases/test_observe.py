"""The observer: what each way an answer may end leads to, and that no fault of accounting gets out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from proxy.core.usage import Grade, Observation, Usage
from tests.fakes.accounts import WordCounterBeside, observer

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
    _waiting: list[str] = field(default_factory=list)

    @property
    def text_chars(self) -> int:
        return sum(map(len, self._waiting))

    def saw(self, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self._waiting += self.texts[:1]
        del self.texts[:1]

    def take_texts(self) -> list[str]:
        taken, self._waiting = self._waiting, []
        return taken

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(
    ("reader", "observation"),
    [
        (Reader(), Observation(Grade.COUNTED, Usage(7, 0))),
        (Reader(texts=["two words"]), Observation(Grade.COUNTED, Usage(7, 2))),
        (Reader(SAID, final=True, texts=["one two three four"]), Observation(Grade.EXACT, SAID)),
        (Reader(SAID, final=True, lost=True), Observation(Grade.EXACT, SAID)),
        # cumulative usage in the middle: true of the prompt, and of the output at least
        (Reader(SAID, texts=["one"]), Observation(Grade.COUNTED, Usage(5, 3))),
        (Reader(SAID, texts=["one two three four"]), Observation(Grade.COUNTED, Usage(5, 4))),
        (Reader(Usage(0, 3), texts=[""]), Observation(Grade.COUNTED, Usage(7, 3))),
        (Reader(SAID, lost=True), Observation(Grade.UNKNOWN)),
        (Reader(lost=True, texts=["two words"]), Observation(Grade.UNKNOWN)),
        (None, Observation(Grade.UNKNOWN)),
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
    assert reader.text_chars == 0, "counted, and no longer held"
    watching.saw(b"")
    watching.finish()
    assert not watching.is_quick
    assert await watching.observe_beside(0) == Observation(Grade.COUNTED, Usage(0, 5000))
    assert beside.texts == ["word " * 1000]


def test_short_rests_and_known_usage_need_no_task() -> None:
    assert observer(None).is_quick
    for reader in (Reader(texts=["short"]), Reader(SAID, final=True, texts=["x" * 10_000])):
        watching = observer(reader)
        watching.saw(b"")
        assert watching.is_quick


def test_a_fault_ends_the_watching_and_is_counted() -> None:
    reader = Reader(fault=ZeroDivisionError(), faults=2)
    watching = observer(reader)
    watching.saw(b"a block")
    watching.saw(b"another")
    watching.finish()
    assert watching.faults == 1
    assert watching.observe(7) == Observation(Grade.UNKNOWN)
    assert observer(Reader(faults=2)).faults == 2
