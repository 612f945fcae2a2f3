"""Follow an answer as it is relayed: what the upstream says it used, and the output text in case it never says.

Readers are shown bytes that are on their way anyway, must cost next to nothing, and never raise: accounting may fail,
the relay may not. The rules are protocol.md sections 1.6 and 5.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from proxy.core.answer_events import PAIRS, Events, LargeEvent, Said, read_events, repeats
from proxy.core.answer_texts import AnswerTexts
from proxy.core.answer_usage import usage_of
from proxy.core.discreet import Discreet
from proxy.core.sse import MAX_EVENT_BYTES
from proxy.core.usual_chunks import usual_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.usage import Usage

# Raw events are held up to this size and then decoded together: one call for some sixty events.
BATCH_BYTES: Final = 16384
# Streams in step would all decode in the same turn of the event loop, were their first batches not of many lengths.
# Most short answers are settled by their last event: none of their batches needs to be full before that.
_FIRST_BATCHES: Final = itertools.cycle(range(BATCH_BYTES // 4, BATCH_BYTES + 1, BATCH_BYTES // 16))

_BOUNDARY: Final = re.compile(rb"\n[\n\r]|\r\r")
_DONE_EVENT: Final = b"data: [DONE]\n\n"
_BOM: Final = b"\xef\xbb\xbf"

_TERMINAL: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
    | {"transcript.text.done", "speech.audio.done", "image_generation.completed", "image_edit.completed"}
)
# Whoever sends more choices than this is not followed for their ends.
_MAX_CHOICES: Final = 256


class AnswerReader(Protocol):
    """Follows one answer. What it found is complete after `finish`."""

    @property
    def usage(self) -> Usage | None:
        """What the upstream said last, None if nothing that can be believed."""

    @property
    def final(self) -> bool:
        """`usage` is the whole truth: the answer's end was seen, and no output after the usage was said."""

    @property
    def text_chars(self) -> int:
        """How many characters of output wait to be taken. Each takes up to 4 bytes."""

    @property
    def lost(self) -> bool:
        """Part of the output could not be followed, or is no text: a count of the texts would be too low."""

    @property
    def is_error(self) -> bool:
        """It is a body that tells of an error, whatever its status. Errors within a stream are the relay's to see."""

    @property
    def faults(self) -> int:
        """Events, or bodies, that should have been readable and were not."""

    def saw(self, data: bytes) -> int:
        """Take the next bytes of the answer; return the `text_chars` there are now. Never raises."""

    def catch_up(self) -> None:
        """Read what was only kept so far, so that the results are those of all that was seen. Never raises."""

    def finish(self) -> None:
        """No more bytes come: the answer ended, or broke off. Never raises."""

    def take_texts(self, most_chars: int | None = None) -> list[str]:
        """The output text since last time, by choice, kind and tool call, some `most_chars`. Incomplete if `final`."""


class Reader(Discreet):
    """What both readers share: the results, and a step that may fail."""

    usage: Usage | None = None
    final: bool = False
    lost: bool = False
    is_error: bool = False
    faults: int = 0
    _texts: AnswerTexts = msgspec.field(default_factory=AnswerTexts)
    _held: bytearray = msgspec.field(default_factory=bytearray)

    @property
    def text_chars(self) -> int:
        """As the protocol says."""
        return self._texts.chars

    def take_texts(self, most_chars: int | None = None) -> list[str]:
        """As the protocol says."""
        return self._texts.take(most_chars)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001 - nothing that accounting stumbles over may touch the relay; it is counted
            self.faults += 1
            self.lost = True
            self._held.clear()


class EventAnswer(Reader):
    """Follows a `text/event-stream` from what `EventScanner.feed` releases.

    It holds at most `BATCH_BYTES` between calls, and the text that waits. An event over `MAX_EVENT_BYTES` is searched
    for usage as it flows; its text is lost.
    """

    _batch_bytes: int = msgspec.field(default_factory=_FIRST_BATCHES.__next__)
    _at_start: bool = True
    _large: LargeEvent | None = None  # an oversize event that goes on
    _ended: bool = False
    _is_current: bool = False  # no output came after the usage was said
    _choices: set[int] = msgspec.field(default_factory=set)
    _finished: set[int] = msgspec.field(default_factory=set)

    def saw(self, data: bytes) -> int:
        """Take a released block: whole events, or a fragment of an oversize one. Never raises."""
        held = self._held
        held += data
        if len(held) >= self._batch_bytes or self._large is not None:
            self._batch_bytes = BATCH_BYTES
            self._attempt(self._decode)
        return self._texts.chars

    def catch_up(self) -> None:
        """Decode the events that are held."""
        self._attempt(self._decode)

    def finish(self) -> None:
        """No more comes. Texts that are not needed, because the last event settles the usage, are not decoded."""
        self._attempt(self._finish)

    def _decode(self) -> None:
        held = bytes(self._held)
        self._held.clear()
        if self._large is not None:
            held = self._large.feed(held)
            if not self._large.is_complete:
                return
            self._fold_large(self._large)
            self._large = None
        end = max(held.rfind(pair) for pair in PAIRS) + 2
        if end > 1:
            self._read(held[:end])
            held = held[end:]
        if len(held) < BATCH_BYTES:
            self._held += held
        else:  # the scanner holds back what is incomplete, but for oversize events
            self._large = LargeEvent()
            self._large.feed(held)

    def _finish(self) -> None:
        held = bytes(self._held)
        self._held.clear()
        if self._large is not None:
            self._fold_large(self._large)
            self._large = None
        elif held and not self._is_settled_by_last(held):
            self._fold(read_events(held, at_start=self._at_start, final=True))

    def _is_settled_by_last(self, held: bytes) -> bool:
        """The usual end: usage in the last event, then `[DONE]`, or usage in a terminal event."""
        text = held.removesuffix(_DONE_EVENT)
        last = text[text.rfind(b"\n\n", 0, -2) + 2 :] if b"\n\n" in text[:-2] else text
        if b'"usage"' not in last:
            return False
        said = read_events(last).said
        usage = usage_of(said[0]) if len(said) == 1 else None
        if usage is None or (len(text) == len(held) and said[0].type not in _TERMINAL):
            return False
        self.usage = usage
        self.final = True
        return True

    def _read(self, block: bytes) -> None:
        """Take complete events. Which of them are oversize must not depend on how they were cut."""
        if len(block) <= MAX_EVENT_BYTES:
            text = usual_text(block)
            if text is None:
                self._fold(read_events(block, at_start=self._at_start))
            else:
                self._fold_usual(text)
            return
        start = 0
        for boundary in _BOUNDARY.finditer(block):
            event = block[start : boundary.end()]
            start = boundary.end()
            if len(event) <= MAX_EVENT_BYTES:
                self._fold(read_events(event, at_start=self._at_start))
            else:
                large = LargeEvent()
                large.feed(event)
                self._fold_large(large)

    def _fold_large(self, large: LargeEvent) -> None:
        said = large.said()
        if not repeats(said):
            self.lost = True
            self._is_current = False
        self._fold(Events([said], done=False, faults=large.faults))

    def _fold_usual(self, text: str) -> None:
        """`_fold` for usual chunks, which say `text` and nothing else."""
        self._at_start = False
        self._choices.add(0)
        self._texts.add_content(text)
        self._texts.join()
        self._take_usage([], 0 if text else -1)

    def _fold(self, events: Events) -> None:
        """Take over what a batch of events says."""
        self._at_start = False
        texts = self._texts
        told: list[tuple[int, Said]] = []
        last_output = -1
        for number, said in enumerate(events.said):
            if said.usage is not None or said.response is not None or said.x_groq is not None:
                told.append((number, said))
                if said.response is not None and said.response.background is True:
                    self.lost = True  # whoever leaves does not stop it
            if said.choices:
                for choice in said.choices:
                    (self._finished if choice.finish_reason else self._choices).add(choice.index or 0)
                    if texts.add_choice(choice):
                        last_output = number
            elif said.type is not None:
                self._ended = self._ended or said.type in _TERMINAL
                if texts.add_event(said):
                    last_output = number
        texts.join()
        if events.faults:
            self.faults += events.faults
            self.lost = True
        self.lost = self.lost or texts.not_text
        self._ended = self._ended or events.done
        self._take_usage(told, last_output)

    def _take_usage(self, told: list[tuple[int, Said]], last_output: int) -> None:
        """The last usage of a batch counts, wherever it is believed: looked for from the end, as it may be on each."""
        self._is_current = self._is_current and last_output < 0
        for number, said in reversed(told):
            usage = usage_of(said)
            if usage is not None:
                self.usage = usage
                self._is_current = number >= last_output
                break
        if max(len(self._choices), len(self._finished)) > _MAX_CHOICES:
            self._choices = {-1}  # which never ends
            self._finished = set()
        ended = self._ended or (bool(self._finished) and self._choices <= self._finished)
        self.final = self.usage is not None and ended and self._is_current
