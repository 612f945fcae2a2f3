"""Accounting without a database: entries that remember, a counter that counts words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.core.gaps import Gaps
from proxy.core.usage import Usage
from proxy.phases.account import Account
from proxy.phases.observe import Counting, Observer
from proxy.phases.relay import Accompaniment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.core.answers import AnswerReader
    from proxy.core.errors import ProxyError
    from proxy.core.pricing import Price
    from proxy.stores.base import Settled

RESERVED = Usage(7, 100)


class WordCounter:
    """A token is a word."""

    def count(self, texts: Sequence[str], encoding: str) -> int:
        assert encoding == "o200k_base"
        return sum(len(text.split()) for text in texts)


class WordCounterBeside:
    """The same, which remembers the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def count(self, texts: Sequence[str], encoding: str) -> int:
        self.texts += texts
        return WordCounter().count(texts, encoding)


@dataclass
class MemoryEntry:
    """A row that is durable at once, or fails with `failure`."""

    failure: ProxyError | None = None
    waited: int = 0
    settled: list[Settled] = field(default_factory=list)

    async def durable(self) -> None:
        self.waited += 1
        if self.failure is not None:
            raise self.failure

    def settle(self, settled: Settled) -> None:
        self.settled.append(settled)


def account(*, price: Price | None = None, sent: bool = True, entry: MemoryEntry | None = None) -> Account:
    """An account with a prompt of 7 tokens and room for 100."""
    made = Account(
        entry or MemoryEntry(), prompt_tokens=7, most_tokens=100, price=price, served=None, encoding="o200k_base"
    )
    made.is_sent = sent
    return made


def observer(reader: AnswerReader | None = None, beside: WordCounterBeside | None = None) -> Observer:
    return Observer(reader, Counting(WordCounter(), beside or WordCounterBeside()), "o200k_base")


def accompaniment(
    watching: Observer | None = None,
    *,
    entry: MemoryEntry | None = None,
    hide: Callable[[bytes], bytes] | None = None,
) -> Accompaniment:
    return Accompaniment(watching or observer(), Gaps(), [], (entry or MemoryEntry()).durable, hide)
