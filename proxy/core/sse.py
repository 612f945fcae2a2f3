"""Server-sent events: bytes in, whole events out, never a changed byte.

`EventScanner` is what the relay writes by: it says how much of a stream may go downstream now, so that an error event
or a keep-alive comment never lands inside another event. `parse_events` decodes complete blocks, for accounting and
for the few decisions that need a field. Both follow the WHATWG HTML standard, section 9.2.5 and 9.2.6.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from proxy.core.discreet import Discreet

# An event is held until it is complete, up to this size; a larger one (images arrive as megabytes of base64 on one
# line) flows through as it arrives. 64 KiB is a quarter of what a stream may hold in all.
MAX_EVENT_BYTES: Final = 65536

# A comment line and the blank line that ends it. No client reacts to it, unless an `id` field went before
# (protocol.md section 2.2).
KEEPALIVE_COMMENT: Final = b": ping\n\n"

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 0x0A
_CR: Final = 0x0D
_LINE_ENDS: Final = (_LF, _CR)

_DONE_EVENT: Final = b"data: [DONE]\n\n"
_USUAL_EVENT: Final = re.compile(rb"data: \{.*+\n\n")
_NAMED_EVENTS: Final = re.compile(rb"(?:event: [^\n]*+\ndata: \{[^\n]*+\n\n)++")

# How a field looks in text whose line ends are all LF: on the first line, on a later one, and there without a value.
_Field = tuple[tuple[bytes, bytes], bytes, bytes]
_DATA: Final[_Field] = ((b"data:", b"data\n"), b"\ndata:", b"\ndata\n")
_ID: Final[_Field] = ((b"id:", b"id\n"), b"\nid:", b"\nid\n")

# Enough of what went before to recognise a field name that is split over two fragments of an oversize event.
_CARRY_BYTES: Final = len(b"\ndata")


class Event(NamedTuple):
    """One decoded event: `type` is empty where the standard says "message"; `id` is the last one set so far."""

    type: str
    data: bytes
    id: str | None


class EventScanner(Discreet):
    """Splits a byte stream at event boundaries, holding at most `MAX_EVENT_BYTES`.

    A boundary is a blank line: two consecutive line ends, each LF, CRLF or CR (WHATWG HTML section 9.2.5).
    What `feed` returned plus what `finish` returns is always the input.

    `at_boundary`: what was released so far ends at a boundary, so something of ours may be written here.
    `events`: events with data released so far; comments, blank lines and blocks without data do not count.
    `done`: an event whose data is `[DONE]` was released. Not looked for inside oversize events.
    `id_seen`: an `id` field was released; keep-alive comments are unsafe from then on.
    """

    at_boundary: bool = True
    events: int = 0
    done: bool = False
    id_seen: bool = False
    _held: bytearray = msgspec.field(default_factory=bytearray)
    _last: int = _LF  # the last byte fed; a stream begins at the start of a line
    _fresh: bool = True  # nothing was accounted yet, so a byte order mark may come
    inside_event: bool = False  # an oversize event is flowing
    _open_has_data: bool = False
    _carry: bytes = b""  # the end of what flowed of it

    @property
    def held_bytes(self) -> int:
        """Bytes that were fed and not yet released."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return what may be written now, up to the last boundary, or b"" if there is none."""
        if self._takes_end(data) if data.endswith(_DONE_EVENT) else self.takes(data):
            return data
        return self._feed(data) if data else b""

    def takes(self, data: bytes) -> bool:
        """`feed` for the usual read: True if it is whole events, all of which may be written now, and none is `[DONE]`.

        False says nothing, and changes nothing.
        """
        if self._held or not self.at_boundary or b"\r" in data:
            return False
        if _USUAL_EVENT.fullmatch(data):
            self.events += 1
        elif data[-2:] == b"\n\n" and (events := _usual_events(data)):
            self.events += events
        else:
            return False
        self._last = _LF
        self._fresh = False
        return True

    def _takes_end(self, data: bytes) -> bool:
        """The same for a read that ends in `[DONE]`."""
        before = data[: -len(_DONE_EVENT)]
        if self._held or not self.at_boundary or (before and not self.takes(before)):
            return False
        self.events += 1
        self.done = True
        self._last = _LF
        self._fresh = False
        return True

    def finish(self) -> bytes:
        """At a clean end of the body: return what is held back, unterminated, as it is.

        Such a remainder counts as an event if it has data: clients act on a `[DONE]` without its blank line.
        """
        rest = bytes(self._held)
        self._held.clear()
        if rest or self.inside_event:
            self._account(rest + b"\n\n")  # a body that ends, ends the line
        self.at_boundary = not rest and not self.inside_event
        self.inside_event = False
        return rest

    def _feed(self, data: bytes) -> bytes:
        self.at_boundary = not self.inside_event  # half a CRLF is resolved by whatever follows it
        end = self._boundary_end(data)
        # A blank line's CR behind an LF is most likely half of a CRLF. The event is complete and goes out, but nothing
        # of ours may come between the halves: clients that split at LF would read it as part of that line.
        half = 0 < end == len(data) and data[-1] == _CR and (data[-2] if end > 1 else self._last) == _LF
        self._last = data[-1]
        out = b""
        if end:
            out = self._joined(data[:end])
            self._account(out)
            self.inside_event = False
            self.at_boundary = not half
            data = data[end:]
        if self.inside_event or len(self._held) + len(data) > MAX_EVENT_BYTES:
            part = self._joined(data)
            self._account(part, closed=False)
            self.inside_event = True
            self.at_boundary = False
            return out + part
        self._held += data
        return out

    def _joined(self, data: bytes) -> bytes:
        if not self._held:
            return data
        joined = b"".join((self._held, data))
        self._held.clear()
        return joined

    def _boundary_end(self, data: bytes) -> int:
        """Where in `data` the last blank line ends, 0 if none does. Looks at no byte of what is held but the last."""
        pair = data.rfind(b"\n\n")
        if b"\r" in data:
            # of two line ends in a row only CR LF is one: every other pair is a line end and a blank line
            pair = max(pair, data.rfind(b"\r\r"), data.rfind(b"\n\r"))
        if pair >= 0:
            end = pair + 2
        elif self._ends_blank_line(data[0]):
            end = 1
        else:
            return 0
        return end + 1 if data[end - 1] == _CR and data[end : end + 1] == b"\n" else end

    def _ends_blank_line(self, first: int) -> bool:
        if self._last == _LF:
            return first in _LINE_ENDS
        if self._last == _CR:
            # LF completes a CRLF: no blank line, but behind a boundary it belongs to what was released
            return first == _CR or (first == _LF and not self._held and not self.inside_event)
        return False

    def _account(self, block: bytes, *, closed: bool = True) -> None:
        """Look at what is released: count events, notice `[DONE]` and `id`; if not `closed`, remember what is open."""
        text = self._carry + block
        inside = bool(self._carry)  # text begins inside an oversize event, not at the start of a line
        if self._fresh:
            self._fresh = False
            text = text.removeprefix(_BOM)
        self._carry = b"" if closed else text[-_CARRY_BYTES:]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self.id_seen = self.id_seen or _has_field(text, 0, len(text), _ID, inside=inside)
        done_at = text.find(b"[DONE]")
        start = 0
        while (end := text.find(b"\n\n", start)) >= 0:
            if self._open_has_data or _has_field(text, start, end + 1, _DATA, inside=inside):
                self.events += 1
                self._open_has_data = False
            if 0 <= done_at < end:
                done_at = text.find(b"[DONE]", end)
                if not inside and end - start <= MAX_EVENT_BYTES and _says_done(text[start : end + 2]):
                    self.done = True
            inside = False
            start = end + 2
        if not closed and _has_field(text, start, len(text), _DATA, inside=inside):
            self._open_has_data = True


def _usual_events(data: bytes) -> int:
    """The usual read, told by its shape: events that are a JSON object on one line, with LF and maybe an event type.

    `data` ends in a blank line and has no CR. 0 says nothing. Such events are not `[DONE]`, and have no `id`.
    """
    lines = data.count(b"\n")
    if data.startswith(b"data: {"):
        # each of so many begins behind a blank line: if there are no other line ends, there are no other lines
        events = data.count(b"\n\ndata: {") + 1
        return events if lines == 2 * events else 0
    if lines == 3:
        return 1 if data.startswith(b"event: ") and b"\ndata: {" in data else 0
    return lines // 3 if _NAMED_EVENTS.fullmatch(data) else 0


def _has_field(text: bytes, start: int, end: int, field: _Field, *, inside: bool) -> bool:
    """Is there a line in `text[start:end]` that is the field? If `inside`, `start` is not the start of a line."""
    first, with_colon, bare = field
    return (
        (not inside and text.startswith(first, start, end))
        or text.find(with_colon, start, end) >= 0
        or text.find(bare, start, end) >= 0
    )


def _says_done(block: bytes) -> bool:
    return any(event.data.strip() == b"[DONE]" for event in parse_events(block))


def parse_events(block: bytes, *, at_start: bool = False, final: bool = False) -> list[Event]:
    """Decode the events of `block`, which begins at an event boundary, by WHATWG HTML section 9.2.6.

    Lines of `data` are joined with LF; blocks without data are no events; comments, `retry` and unknown fields are
    skipped. `at_start`: the block begins the stream, so a byte order mark is skipped. `final`: the body ended here, so
    an event without its blank line is returned too; the standard drops it, accounting should not.
    """
    if at_start:
        block = block.removeprefix(_BOM)
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = block.split(b"\n")
    unterminated = lines.pop()  # what follows the last line end, usually nothing
    if final:
        lines += [unterminated, b""]
    events: list[Event] = []
    kind, last_id = "", None
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                events.append(Event(kind, b"\n".join(data), last_id))
                data = []
            kind = ""
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            last_id = value.decode(errors="replace")
    return events
