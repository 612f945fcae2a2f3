"""Hiding what asking for usage adds to a stream, so that a client that did not ask gets the bytes of its own request.

An upstream that is asked for `include_usage` adds `"usage":null` to every chunk and one chunk without choices before
`[DONE]` (protocol.md sections 1.1 and 5.1). Where it is not certain what it would have sent unasked, the bytes stay.
`core/body.py` makes the request ask.
"""

from __future__ import annotations

import contextlib
import re
from typing import Annotated, Any, Final

import msgspec

_NAME: Final = b'"usage"'
_NULL: Final = re.compile(rb'"usage"[ \t\n\r]*+:[ \t\n\r]*+null')
_NO_CHOICES: Final = re.compile(rb'"choices"[ \t\n\r]*+:[ \t\n\r]*+\[[ \t\n\r]*+\]')
_SPACE: Final = b" \t\n\r"
# as most upstreams write it, OpenAI with some padding behind
_USUAL_END: Final = re.compile(rb'(?<![ \t\n\r]),"usage":null(?:,"obfuscation":"[0-9A-Za-z]*+")?\}\n\n')
_MEMBER_BYTES: Final = len(b',"usage":null')
_USUAL_MEMBER: Final = b',"usage":null'
_USUAL_MEMBERS: Final = re.compile(  # of events of a line each; what begins with the comma is searched for faster
    rb',"usage":null(?<![ \t],"usage":null)(?=(?:,"obfuscation":"[0-9A-Za-z]*+")?\}\n\n(?:data: \{|\Z))'
)
_USUAL_LAST: Final = re.compile(rb"data: (\{[^\n]++)\n\n(data: \[DONE\]\n\n)")
_LF: Final = 0x0A
_CR: Final = 0x0D

# A chunk may have the member on other levels too (Groq). Each that is looked at costs a decode of the chunk, so with
# more of them behind it, the one of the top level stays.
_MOST_LOOKS: Final = 16

# An event with its blank line (WHATWG HTML section 9.2.5). Groups are atomic, else a CR LF could be read as two ends.
_EVENT: Final = re.compile(rb"(?:[^\r\n]++(?>\r\n|\n|\r))*+(?>\r\n|\n|\r)")
_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BOM: Final = b"\xef\xbb\xbf"

# Members of a usage event that hold measurements and nothing of the answer: llama.cpp, Cerebras, vLLM.
_MEASUREMENTS: Final = frozenset({"usage", "timings", "time_info", "metrics"})
_X_GROQ_OF_USAGE: Final = frozenset({"id", "seed", "usage", "usage_breakdown"})

REFUSING_STATUSES: Final = (400, 422)
_MOST_ERROR_BYTES: Final = 65536


class _Chunk(msgspec.Struct, gc=False):
    """Enough of a chunk to see whether it is JSON, and whether it has a top-level `usage`."""

    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _UsageEvent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A usage event as most upstreams write it: nothing in it may be part of an answer."""

    choices: Annotated[list[None], msgspec.Meta(max_length=0)]
    usage: dict[str, Any]
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
    obfuscation: str | None = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_chunks: Final = msgspec.json.Decoder(_Chunk).decode_lines
_decode_usage_event: Final = msgspec.json.Decoder(_UsageEvent).decode
_WITHOUT_USAGE: Final = _Chunk()


class UsageHider:
    """Takes the usage out of a chat or completions stream whose client did not ask for it.

    Give it the blocks that `EventScanner.feed` and `finish` release, in order. From whole events it removes the member
    `"usage":null` of the top level, with its comma and white space; and it drops whole events that tell of nothing but
    usage, all their lines but comments. What stays as it is: events that are not whole (oversize ones, the remainder of
    a body) or that msgspec does not read, `"usage":null` where the JSON stands on several `data` lines, usage beside
    choices, usage below the top level, comments.

    A usage event takes along what is no part of the answer: ids, other scalars, and measurements, among them the
    `timings` that llama.cpp would have put on the chunk before. An `error`, or an unknown member with something in its
    object or list, keeps it.
    """

    __slots__ = ("_last", "_plain", "_wants_lf")

    def __init__(self) -> None:
        self._plain = True  # neither of the following
        self._last = b""  # the last byte of a fragment, while an oversize event flows
        self._wants_lf = False  # a dropped event ended in CR: an LF that follows is the other half of its line end

    def hide(self, block: bytes) -> bytes:
        """The block without what the injection added."""
        if not self._plain or block[-2:] != b"\n\n":
            return self._hide_in_events(block) if block else b""
        if (at := block.rfind(_NAME)) < 0:
            return block
        if _CR in block:  # a blank line may end in it
            return self._hide_in_events(block)
        if block.find(b"\n") == len(block) - 2:
            return _without_usual_member(block, at - 1) or _hidden_event(block)
        # events that are usual by a few calls for all, then the usual end; what else there is one by one
        shown, rest = b"", block
        if (member := block.rfind(_USUAL_MEMBER)) >= 0:
            end = block.find(b"\n\n", member) + 2
            usual, rest = _without_usual_members(block[:end]), block[end:]
            if usual is None:
                return self._hide_in_events(block)
            shown = usual
        if (last := _USUAL_LAST.fullmatch(rest)) and _NAME in rest and _is_usage_only(last[1]):
            return shown + last[2]
        return shown + self._hide_in_events(rest)

    def _hide_in_events(self, block: bytes) -> bytes:
        """`hide` for every other shape: several events, other line ends, `event` lines, comments, fragments."""
        at = 0
        if self._wants_lf and block.startswith(b"\n"):
            block = block[1:]
        elif self._last:
            end = _BLANK_LINE.search(self._last + block)
            at = end.end() - len(self._last) if end else len(block)
            self._last = b"" if end else block[-1:]
        self._wants_lf = False
        kept = [block[:at]]
        while at < len(block):
            event = _EVENT.match(block, at)
            if event is None:
                kept.append(block[at:])
                self._last = block[-1:]
                break
            at = event.end()
            kept.append(_hidden_event(event[0]))
            if at == len(block) and block.endswith(b"\r"):
                self._wants_lf = kept[-1][-2:] != event[0][-2:]
        self._plain = not self._last and not self._wants_lf
        return b"".join(kept)


def _hidden_in_line(event: bytes, at: int) -> bytes | None:
    """`_hidden_event` for the usual one, which is a single line and a blank one; None if this is not its shape."""
    text = event[6:-2]
    if event[:7] != b"data: {" or event[-2:] != b"\n\n" or _LF in text or _CR in text:
        return None
    shown = _hidden(text, at - 6)
    if shown is text:
        return event
    return b"data: %b\n\n" % shown if shown else b""


def _without_usual_member(event: bytes, at: int) -> bytes | None:
    """`_hidden_in_line` for an event of one line that ends as most do, its last `"usage"` behind `at`; None: ask that.

    What stands before the member is an object without its brace, so it is one of the top level, as is what follows.
    """
    if not _USUAL_END.fullmatch(event, at) or not event.startswith(b"data: "):
        return None
    try:
        if _decode_chunk(event[6:at] + b"}").usage is msgspec.UNSET:
            return event[:at] + event[at + _MEMBER_BYTES :]
    except (ValueError, RecursionError):
        return None
    return None


def _without_usual_members(block: bytes) -> bytes | None:
    """The same for many events of a line each; None where one ends otherwise, or is not certain.

    What is left of them is decoded together. A line begins with a brace and ends with one, no comma stands between two,
    and a line end inside of a string is no JSON: there are as many objects as lines only if each line is one. The last
    brace of each closes the object in which the member was.
    """
    pieces = _USUAL_MEMBERS.split(block)
    shown = b"".join(pieces)
    joined = shown.replace(b"\n\ndata: ", b"\n")
    if not shown.startswith(b"data: {") or joined.count(b"\n") != len(pieces):
        return None
    try:
        chunks = _decode_chunks(joined[6:])
    except (ValueError, RecursionError):
        return None
    return shown if chunks.count(_WITHOUT_USAGE) == len(chunks) == len(pieces) - 1 else None


def _hidden_event(event: bytes) -> bytes:
    """A whole event without what the injection added; of one that is dropped, the comments before it remain."""
    if (at := event.rfind(_NAME)) < 0:
        return event
    if (usual := _hidden_in_line(event, at)) is not None:
        return usual
    head = _BOM if event.startswith(_BOM) else b""
    lines = event[len(head) :].splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if line.startswith(b"data:")]
    if len(places) != 1:
        text = b"\n".join(lines[place][5:].rstrip(b"\r\n") for place in places)
        return head + _comments(lines) if _is_usage_only(text) else event
    line = lines[places[0]]
    text = line[5:].rstrip(b"\r\n")
    shown = _hidden(text, text.rfind(_NAME))
    if shown is text:
        return event
    if not shown:
        return head + _comments(lines)
    lines[places[0]] = line[:5] + shown + line[5 + len(text) :]
    return head + b"".join(lines)


def _comments(lines: list[bytes]) -> bytes:
    return b"".join(line for line in lines if line.startswith(b":"))


def _hidden(text: bytes, at: int) -> bytes:
    """The JSON text of a chunk without its null usage; itself if it has none, empty if it tells of usage alone.

    `at`: where the last `"usage"` of the text is. With both of its quotes that cannot be inside a JSON string.
    """
    looks = 0
    while at >= 0 and looks < _MOST_LOOKS:
        null = _NULL.match(text, at)
        if null and (rest := _without_member(text, at, null.end())):
            return rest
        at = text.rfind(_NAME, 0, at)
        looks += 1
    return b"" if looks and _is_usage_only(text) else text


def _without_member(text: bytes, start: int, end: int) -> bytes | None:
    """The text without its member from `start` to `end`; None if that is not one of the top level, or not the only one.

    What stands before it, closed by a brace, is an object only if it stood at the top level; likewise what follows.
    """
    before, after = text[:start].rstrip(_SPACE), text[end:]
    try:
        if before[-1:] == b",":
            before = before[:-1].rstrip(_SPACE)
            whole = _decode_chunk(before + b"}").usage is _decode_chunk(b'{"":0' + after).usage is msgspec.UNSET
            return before + after if whole else None
        if before.lstrip(_SPACE) != b"{":
            return None
        after = after.lstrip(_SPACE)
        if after[:1] != b",":
            return None
        after = after[1:].lstrip(_SPACE)
        return text[:start] + after if _decode_chunk(b"{" + after).usage is msgspec.UNSET else None
    except (ValueError, RecursionError):
        return None  # msgspec's errors are ValueErrors: not JSON, nothing is certain


def _is_usage_only(text: bytes) -> bool:
    """Whether this is the chunk that `include_usage` adds: no choices, a usage, and nothing else that may be answer."""
    if not _NO_CHOICES.search(text):
        return False
    with contextlib.suppress(ValueError, RecursionError):
        _decode_usage_event(text)
        return True
    try:
        chunk = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(chunk, dict) or chunk.get("choices") != [] or not isinstance(chunk.get("usage"), dict):
        return False
    return not chunk.get("error") and not any(_may_be_content(name, value) for name, value in chunk.items())


def _may_be_content(name: str, value: Any) -> bool:
    """Whether a member may hold part of an answer: prompt_filter_results, moderation, citations, a failure at Groq."""
    if not value or not isinstance(value, (dict, list)) or name in _MEASUREMENTS:
        return False
    return name != "x_groq" or not isinstance(value, dict) or not value.keys() <= _X_GROQ_OF_USAGE


def refuses_stream_options(status: int, body: bytes) -> bool:
    """Whether an upstream's error answer is about `stream_options`, as Mistral's 422 and older Azure versions' 400.

    Only a guess: an error that quotes the request names them too. Believe it once the request went through without.
    """
    if status not in REFUSING_STATUSES:
        return False
    text = body[:_MOST_ERROR_BYTES]
    return b"stream_options" in text or b"include_usage" in text
