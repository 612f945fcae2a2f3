"""The exact token counter, and counting without delaying the event loop."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from proxy.core.tokens import CL100K, O200K, ApproximateCounter, batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.core.tokens import TokenCounter

_LIBRARY: Final = "toktok"
_KNOWN: Final = frozenset({O200K, CL100K})
# What is counted at once: a call costs 15 µs, and this much of the text that is slowest to count 1.1 ms.
AT_ONCE_CHARS: Final = 4096
_LONGEST_REMEMBERED_CHARS: Final = 32_768
# Half of the texts whose counts are remembered; each takes 100 bytes. A batch may have some thousands.
_MOST_REMEMBERED: Final = 8192
# Behind each batch. A thread whose next work is there already would keep the interpreter lock until it is asked for it,
# which happens after 5 ms; a sleep of 0 would win it back before the loop's thread is awake.
_REST_S: Final = 50e-6


def installed() -> bool:
    """Is the extra `tokenizers` installed? If not, `load` returns the approximate counter."""
    return importlib.util.find_spec(_LIBRARY) is not None


def load(encodings: Iterable[str]) -> TokenCounter:
    """The best counter there is, with the tables of `encodings` in memory; of none that is known, o200k_base's.

    Takes up to half a second and 63 MiB for each encoding, and holds the interpreter lock meanwhile: call it before
    serving, and in the event loop's thread. The library keeps 16 MiB of working memory for whichever thread counts
    first, and as much for the others: what a thread that never counts again was given would be lost.

    What has no table is counted by o200k_base, or by the one table there is. Raises ImportError where the extra is
    installed but broken.
    """
    if not installed():
        return ApproximateCounter()
    return _ExactCounter(importlib.import_module(_LIBRARY), {*encodings} & _KNOWN or {O200K})


def prepare(counter: TokenCounter, encodings: Iterable[str]) -> None:
    """Have the tables of `encodings` in memory too, if `counter` needs any. Takes its time, as `load` does."""
    if isinstance(counter, _ExactCounter):
        counter.prepare(encodings)


class _ExactCounter:
    """Counts with toktok-rs, whose counts are those of tiktoken.

    Texts go to it in batches: it holds the interpreter lock while it takes texts over, 10 ms for 18 MB.
    """

    def __init__(self, library: Any, encodings: Iterable[str]) -> None:
        self._count: Callable[..., list[int]] = library.batch_count
        self._memories: dict[str, _Memory] = {}
        self.prepare(encodings)

    def count(self, texts: Sequence[str], encoding: str) -> int:
        return self._memories.get(encoding, self._otherwise).count(texts)

    def prepare(self, encodings: Iterable[str]) -> None:
        for encoding in ({*encodings} & _KNOWN) - self._memories.keys():
            self._counts([""], encoding)
            self._memories[encoding] = _Memory(functools.partial(self._counts, encoding=encoding))
        self._otherwise = self._memories.get(O200K) or self._memories[CL100K]

    def _counts(self, batch: list[str], encoding: str) -> list[int]:
        # threads=0 would start threads, which costs four times the call
        try:
            return self._count(batch, encoding, threads=1)
        except UnicodeEncodeError:
            return self._count([_whole(text) for text in batch], encoding, threads=1)


class _Memory:
    """What texts came to that were counted before: system prompts and histories are sent again with every turn.

    Texts are known by their hashes, 64 bits under a key that is each start's own, so that nothing of a prompt stays.
    Long ones are rare, and counted anew. Threads may share it: a count that is found is right, whatever others do.
    """

    def __init__(self, counts: Callable[[list[str]], list[int]]) -> None:
        self._counts = counts
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}  # what was asked for again before it got here is in both

    def count(self, texts: Sequence[str]) -> int:
        try:
            return sum(map(self._young.__getitem__, map(hash, texts)))
        except KeyError:
            return self._count_new(texts)

    def _count_new(self, texts: Sequence[str]) -> int:
        young, old = self._young, self._old
        tokens = 0
        new = []
        for text in texts:
            key = hash(text)
            known = young.get(key)
            if known is None and (known := old.get(key)) is not None:
                young[key] = known
            if known is None:
                new.append(text)
            else:
                tokens += known
        for batch in batches(new):
            counts = self._counts(batch)
            tokens += sum(counts)
            for text, count in zip(batch, counts, strict=True):
                if len(text) <= _LONGEST_REMEMBERED_CHARS:
                    self._young[hash(text)] = count
            if len(self._young) > _MOST_REMEMBERED:
                self._old, self._young = self._young, {}
        return tokens


def _whole(text: str) -> str:
    """The text with its lone surrogates replaced by U+FFFD, and pairs that were written as halves joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class BackgroundCounter:
    """Counts without delaying the event loop: long texts in one thread of its own, batch by batch.

    Tasks take turns with their batches, so a long text does not hold up short ones. Cancelling takes effect at once;
    the batch that is being counted is then finished for nothing.
    """

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")  # starts it when first needed
        self._closed = False

    async def count(self, texts: Sequence[str], encoding: str) -> int:
        """The tokens of all `texts` (`TokenCounter.count`), long texts cut as by `batches`."""
        if sum(map(len, texts)) <= AT_ONCE_CHARS:
            return self._counter.count(texts, encoding)
        loop = asyncio.get_running_loop()
        tokens = 0
        for batch in batches(texts):
            if self._closed:
                tokens += self._counter.count(batch, encoding)
            else:
                tokens += await loop.run_in_executor(self._executor, self._count_apart, batch, encoding)
        return tokens

    def close(self) -> None:
        """End the thread once it has counted what it was given. Later counts are made in the caller."""
        self._closed = True
        self._executor.shutdown(wait=False)

    def _count_apart(self, batch: list[str], encoding: str) -> int:
        tokens = self._counter.count(batch, encoding)
        time.sleep(_REST_S)
        return tokens
