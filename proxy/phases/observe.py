"""Watch what passes and find out what it used, without ever holding it up.

The relay shows every block to an `Observer`. Text is counted as it piles up, so that a stream holds little of it, and
only where the upstream did not say what was used is the rest counted at the end. A fault in here is counted, ends the
watching, and never reaches the relay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from proxy.core.answer_body import BodyAnswer
from proxy.core.answers import EventAnswer
from proxy.core.discreet import Discreet
from proxy.core.tokens import ApproximateCounter
from proxy.core.usage import Observation, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from proxy.core.answers import AnswerReader
    from proxy.core.tokens import TokenCounter
    from proxy.phases.exchange import Exchange
    from proxy.phases.forward import Answer

# Counting so much takes 0.2 ms, and 3 ms of text that is made to take long: no more is counted at once.
_HELD_CHARS: Final = 16_384
# So much text waits for its turn where an upstream sends it in large events, 128 KiB in memory if there is an emoji.
# What does not fit is counted by the rule that needs no tokenizer: it takes a twentieth of the time.
_WAITING_CHARS: Final = 32_768
_ROUGHLY: Final = ApproximateCounter()
# At the end so much is counted at once; more waits for its turn in a thread.
_SHORT_CHARS: Final = 4_096
_CHARS_PER_TOKEN: Final = 4  # of text that waits to be counted; a rule for English
_UNKNOWN: Final = Observation("unknown")


class CountsBeside(Protocol):
    """Counts long texts beside the event loop."""

    async def count(self, texts: Sequence[str], encoding: str) -> int:
        """The tokens of all `texts` together."""


@dataclass(frozen=True, slots=True)
class Counting:
    """The two ways to count: at once, and beside the event loop."""

    now: TokenCounter
    beside: CountsBeside


def reader_for(exchange: Exchange, answer: Answer) -> AnswerReader | None:
    """What can read this answer; None for one that cannot be followed.

    Stateful endpoints repeat what other exchanges used, so nobody may believe theirs.
    """
    if exchange.endpoint.treatment == "stateful":
        return None
    if answer.kind == "events":
        return EventAnswer()
    return BodyAnswer(input_only=exchange.endpoint.name == "embeddings") if answer.is_json else None


class Observer(Discreet):
    """Follows one answer; one without a reader (audio, a coding nobody asked for) stays unknown.

    `rest` reads on behind the finish reason, where the client left before the usage came.
    """

    _reader: AnswerReader | None
    _counting: Counting
    _encoding: str
    rest: Callable[[], Awaitable[None]] | None = None
    _faults: int = 0
    _counted_tokens: int = 0

    def saw(self, data: bytes) -> None:
        """Look at what is being relayed. Never raises."""
        reader = self._reader
        if reader is None:
            return
        try:
            if reader.saw(data) > _HELD_CHARS:
                self._count(reader)
        except Exception:  # noqa: BLE001 - whatever is wrong with accounting must not become the client's trouble
            self._give_up()

    def catch_up(self) -> bool:
        """Find out now what was seen so far; True if the upstream has said what the whole answer used. Never raises."""
        try:
            if self._reader is not None:
                self._reader.catch_up()
        except Exception:  # noqa: BLE001 - as above
            self._give_up()
        return self.has_final_usage

    def finish(self) -> None:
        """No more comes. Never raises; the second call does nothing."""
        try:
            if self._reader is not None:
                self._reader.finish()
        except Exception:  # noqa: BLE001 - as above
            self._give_up()

    @property
    def faults(self) -> int:
        """How often something could not be read that should have been readable."""
        return self._faults + (self._reader.faults if self._reader is not None else 0)

    def output_tokens(self) -> int:
        """About how many tokens of output were seen. Reads each event as it comes, which batches would make cheaper."""
        self.catch_up()
        waiting_chars = self._reader.text_chars if self._reader is not None else 0
        return self._counted_tokens + waiting_chars // _CHARS_PER_TOKEN

    @property
    def is_error(self) -> bool:
        """The answer is a body that tells of an error, though its status does not."""
        return self._reader is not None and self._reader.is_error

    @property
    def has_final_usage(self) -> bool:
        """The upstream has said what the whole answer used."""
        return self._reader is not None and self._reader.usage is not None and self._reader.final

    def observe(self, prompt_tokens: int) -> Observation | None:
        """After `finish`: what was used; `prompt_tokens` is the estimate where nobody said.

        None where finding out takes time that is worth a task of its own.
        """
        known = self._known()
        if known is not None or self._reader is None:
            return known
        if self._reader.text_chars > _SHORT_CHARS:
            return None
        return self._counted(prompt_tokens, self._counting.now.count(self._reader.take_texts(), self._encoding))

    async def observe_beside(self, prompt_tokens: int) -> Observation:
        """The same for long texts too, which are counted beside the event loop."""
        known = self._known()
        if known is not None or self._reader is None:
            return known or _UNKNOWN
        rest_tokens = await self._counting.beside.count(self._reader.take_texts(), self._encoding)
        return self._counted(prompt_tokens, rest_tokens)

    def _count(self, reader: AnswerReader) -> None:
        """Count the text that piled up, but only so much that nobody waits for it, and let no more wait."""
        self._counted_tokens += self._counting.now.count(reader.take_texts(_HELD_CHARS), self._encoding)
        if (over_chars := reader.text_chars - _WAITING_CHARS) > 0:
            self._counted_tokens += _ROUGHLY.count(reader.take_texts(over_chars), self._encoding)

    def _known(self) -> Observation | None:
        """What needs no counting."""
        reader = self._reader
        if reader is None:
            return _UNKNOWN
        if reader.usage is not None and reader.final:
            return Observation("exact", reader.usage)
        return _UNKNOWN if reader.lost else None

    def _counted(self, prompt_tokens: int, rest_tokens: int) -> Observation:
        """What the upstream said in the middle of the answer is true of the prompt, and of the output at least."""
        output_tokens = self._counted_tokens + rest_tokens
        said = self._reader.usage if self._reader is not None else None
        if said is None:
            return Observation("counted", Usage(prompt_tokens, output_tokens))
        usage = msgspec.structs.replace(
            said,
            input_tokens=said.input_tokens or prompt_tokens,
            output_tokens=max(said.output_tokens, output_tokens),
        )
        return Observation("counted", usage)

    def _give_up(self) -> None:
        self._faults += 1
        self._reader = None
