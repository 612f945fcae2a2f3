"""Did the answer end, or only its bytes? What keeps promise 5: never a false end.

SDKs take a stream that ends cleanly without its last events for a finished answer (protocol.md section 2.2). So the
relay shows what it releases to an `EndingWatch`, and asks it when the body has ended.
"""

from __future__ import annotations

import json
import re
from typing import Final, Literal

from proxy.core.sse import EventScanner, parse_events

StreamShape = Literal["chat", "responses", "other"]
"""How the answers of an endpoint end.

chat, completions too: a finish_reason for each choice, then `[DONE]`. responses: one terminal event, no `[DONE]`. other
(speech, transcriptions, images): nothing that could be missed.
"""


# These search raw JSON. They cannot match inside a string value, whatever a model writes: there a quote is `\"`, so
# the name would end in `\"`, and it ends in `"` here. The name of a member is followed by a colon, a value never is.
# An empty finish_reason is what some servers send for null.
_FINISH_REASON: Final = re.compile(rb'"finish_reason"\s*:\s*"[^"]')
_TERMINAL: Final = re.compile(rb'"type"\s*:\s*"response\.(completed|incomplete|failed|cancelled)"')
_ERROR_MEMBER: Final = re.compile(rb'"error"\s*+(?!:\s*+null)')
_ERROR_OBJECT: Final = re.compile(rb'"object"\s*+:\s*+"error"')
_HIDDEN_ERROR: Final = re.compile(
    rb'(?:\A|[\r\n])(?:(error:)|data:\s*+\[(?!DONE\])|data:[^\r\n]*"object"\s*+:\s*+"error")'
)
_BLANK_LINE: Final = re.compile(rb"\r\n\r\n|\n[\r\n]|\r\r")
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
_SEQUENCE_NUMBER: Final = b'"sequence_number"'

# What may be split over two fragments of an oversize event, with room for white space.
_SEAM_BYTES: Final = 64

_BOUNDARIES: Final = (b"\n\n", b"\r\r", b"\n\r", b"\r\n\r\n")
_ERROR_LINES: Final = (b"\nerror:", b"\rerror:")


class EndingWatch:
    """Notes how an answer ends, from the blocks of bytes that are released.

    Show it what `EventScanner.feed` returned, not what was left at the end of the body: clients drop an event without
    its blank line, so what it says was not said.

    `finish_seen`: a choice's finish_reason, or a terminal event of a response, was seen.
    `error_seen`: the upstream sent an error as an event, or a response that failed: an honest ending.
    `hidden_error_seen`: the upstream told of an error in a form that every SDK ignores, so that it reports success
    (protocol.md section 5): an SSE field line `error: {…}` (older llama.cpp), an array of errors (Gemini), or an
    event with `"object":"error"` and no member `error` (Mistral).
    """

    __slots__ = ("_numbered", "_seam", "_shape", "error_seen", "finish_seen", "hidden_error_seen", "is_chat")

    def __init__(self, shape: StreamShape) -> None:
        self.finish_seen = False
        self.error_seen = False
        self.hidden_error_seen = False
        self._shape = shape
        self.is_chat = shape == "chat"
        self._seam = b""  # the end of the last block, if an oversize event goes on behind it
        self._numbered = b""  # from the last sequence_number on

    def saw(self, block: bytes) -> None:
        """Look at a released block: whole events, or a fragment of an oversize one."""
        if self._shape == "other" or not block:
            return
        inside = bool(self._seam)
        if inside:
            self._look(self._seam + block[:_SEAM_BYTES], inside=True)
        self._look(block, inside=inside)
        if not block.endswith(_BOUNDARIES):
            self._seam = (self._seam + block[-_SEAM_BYTES:])[-_SEAM_BYTES:]
        elif inside:
            self._seam = b""

    def flowed(self, block: bytes) -> bool:
        """`saw` for whole events in which there is no "error". True if a finish was seen, in them or before."""
        if self._seam or not self.is_chat:
            self.saw(block)
        elif (at := block.find(b'"finish_reason"')) >= 0 and _FINISH_REASON.search(block, at):
            self.finish_seen = True
        return self.finish_seen

    def truncated(self, *, done: bool) -> bool:
        """Did the body end cleanly, but not the answer? `done`: the scanner saw `[DONE]`."""
        if self._shape == "other" or self.finish_seen or self.error_seen:
            return False
        return self._shape == "responses" or not done

    @property
    def last_sequence_number(self) -> int | None:
        """The sequence_number of the last event of a response that had one."""
        match = _NUMBER.match(self._numbered)
        return int(match[1]) if match else None

    def _look(self, text: bytes, *, inside: bool) -> None:
        if b"error" not in text:
            self._look_for_end(text)
            return
        before = self.finish_seen, self.error_seen, self._numbered
        was_hidden = self.hidden_error_seen
        self._look_for_end(text)
        self._look_for_error(text, inside=inside)
        if self.hidden_error_seen and not was_hidden:  # what stands behind it is not sent, so it says nothing
            self.finish_seen, self.error_seen, self._numbered = before
            sent = until_hidden_error(text)
            self._look_for_end(sent)
            self._look_for_error(sent, inside=inside)

    def _look_for_end(self, text: bytes) -> None:
        if self.is_chat:
            # most events have the member, and null in it: find is far faster than a search from the start
            at = text.find(b'"finish_reason"') if not self.finish_seen else -1
            if at >= 0 and (
                _FINISH_REASON.match(text, text.rfind(b'"finish_reason"')) or _FINISH_REASON.search(text, at)
            ):
                self.finish_seen = True
        else:
            at = text.rfind(_SEQUENCE_NUMBER)
            if at >= 0:
                self._numbered = text[at : at + _SEAM_BYTES]
            if not self.finish_seen and (found := _TERMINAL.search(text)):
                self.finish_seen = True
                self.error_seen = self.error_seen or found[1] == b"failed"

    def _look_for_error(self, text: bytes, *, inside: bool) -> None:
        if (text.startswith(b"error:") and not inside) or any(line in text for line in _ERROR_LINES):
            self.hidden_error_seen = True
        if not self.error_seen and (_ERROR_MEMBER.search(text) or _ERROR_OBJECT.search(text)):
            for event in parse_events(text):
                self._read_error(event.data)

    def _read_error(self, data: bytes) -> None:
        """Is the event an error to clients? They raise on a truthy `error`; a response's may have it in its type only.

        Read by the standard library's parser, as most clients do: it takes lone surrogates, which a message cut at a
        length may hold.
        """
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            return  # no client reads it as an error either
        if isinstance(message, list):
            self.hidden_error_seen |= any(isinstance(one, dict) and bool(one.get("error")) for one in message)
        elif isinstance(message, dict):
            is_typed = self._shape == "responses" and message.get("type") == "error"
            if message.get("error") or is_typed:
                self.error_seen = True
            elif message.get("object") == "error":
                self.hidden_error_seen = True


def until_hidden_error(block: bytes) -> bytes:
    """What of a released block, in which such an error was seen, is to be sent: up to it, and with it if it is data."""
    found = _HIDDEN_ERROR.search(block)
    if found is None:
        return b""
    if found[1]:
        return block[: found.start(1)]
    end = _BLANK_LINE.search(block, found.end())
    return block if end is None else block[: end.end()]


def parted_at_hidden_error(block: bytes) -> tuple[bytes, int]:
    """Whole events of such a block that are to be sent, and how many events of it are not."""
    before = EventScanner().feed(until_hidden_error(block))
    unsent = EventScanner()
    unsent.feed(block[len(before) :])
    return before, unsent.events
