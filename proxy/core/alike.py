"""Events that are like the one before but for a text: what was found out about that one holds for them as well.

A model's answer comes in hundreds of chunks that have all but their text in common. When one was found to be a usual
event, an event that differs from it inside of strings alone is one too, and is shown likewise. Of each no more is done,
or touched, than it takes to know that, since an event meets cold caches; what they were is worked out for many at once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from proxy.core.usual_chunks import usual_text

# of one event: larger ones are rare, and twenty of them more text than is counted at once (phases/observe.py)
MAX_ALIKE_BYTES: Final = 768
KEPT_FOR_EACH: Final = 3
# In valid JSON a value that is a string begins behind it, wherever it stands.
_TEXT: Final = b'"content":"'
# what is tried in its place: of two members of one name the last counts, and may say one of these, but not both
_TRIED: Final = (b"text", b"")
# OpenAI's own filler, random in each chunk
_FILLER: Final = b'"obfuscation":"'
_USAGE: Final = b'"usage"'
# what a string in JSON rarely holds, and what it may: other languages, code, the end of a paragraph
_ODD: Final = re.compile(rb"[^ !#-\[\]-~]")
_find_odd: Final = _ODD.search
_escaped: Final = re.compile(rb'(?:[^"\\\x00-\x1f]|\\[nrt"\\/bf])*+').match
_LINE_END: Final = b"\r\n"
_NOTHING: Final = b"\n"  # no event begins so
# by the bytes in a chunk: the line with its size (RFC 9112 section 7.1), as it is usually written
_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(MAX_ALIKE_BYTES + 1)]
# by the bytes of the whole chunk, with that line and the line end behind
_SIZE_LINE_OF: Final = {size + len(line) + 2: line for size, line in enumerate(_SIZE_LINES)}


class Passed(NamedTuple):
    """What is to be told of events that were alike.

    `times_s`: when each read came, of which there may be fewer than events. Bytes of events as they came and as they
    were shown, and of the chunks in which they were shown. `said`: one usual event that says what all of them said.
    """

    events: int
    times_s: list[float]
    body_bytes: int
    shown_bytes: int
    chunk_bytes: int
    said: bytes


class AlikeEvents:
    """Remembers one event, and tells what is shown of others that are like it.

    Only for events that follow one another, each in a chunk by itself. `kept` grows by `KEPT_FOR_EACH`, until
    `take`; before that nothing else may be learnt.
    """

    __slots__ = ("_between", "_between_bytes", "_end", "_end_bytes", "_hidden_bytes", "_shown_between", "_shown_end",
                 "_start", "_start_bytes", "kept")  # fmt: skip

    def __init__(self) -> None:
        self.kept: list[Any] = []  # of each in turn: when it came, its text, the bytes of its chunk
        self._start = _NOTHING  # up to the text
        self._start_bytes = 1
        self._between = self._shown_between = b""  # from the text's end to the filler; empty without one
        self._between_bytes = 0
        self._end = self._shown_end = b""  # from the end of the filler, or of the text, to that of the chunk
        self._end_bytes = 0
        self._hidden_bytes = 0  # of each event

    def forget(self) -> None:
        """Remember none."""
        self._start = _NOTHING

    def learn(self, event: bytes, shown: bytes) -> bool:
        """Remember whole events that neither finished the answer nor had to be judged, and how they are shown.

        Of several at once, or one that is not of the usual form, nothing is learnt. True if one is remembered by now.
        """
        if event.count(b"\n") == 2:
            self._learn(event, shown)
        return self._start is not _NOTHING

    def _learn(self, event: bytes, shown: bytes) -> None:
        begin = event.find(_TEXT) + len(_TEXT)
        end = event.find(b'"', begin)
        filler = event.find(_FILLER, end) + len(_FILLER)
        if begin < len(_TEXT) or _ODD.search(event, begin, end) or not shown.startswith(event[:end]):
            return
        if any(usual_text(b"%b%b%b" % (event[:begin], text, event[end:])) != text.decode() for text in _TRIED):
            return  # it says something else, or that as well
        if shown == event and _USAGE in event:
            return  # a usage that was left is not understood
        if filler < len(_FILLER):
            between = shown_between = b""
            rest, shown_rest = event[end:] + _LINE_END, shown[end:] + _LINE_END
        else:
            filler_end = event.find(b'"', filler)
            if _ODD.search(event, filler, filler_end) or not shown.endswith(event[filler:]):
                return
            between = event[end:filler]
            shown_between = shown[end : len(shown) - (len(event) - filler)]
            rest = shown_rest = event[filler_end:] + _LINE_END
        self._start, self._start_bytes = event[:begin], begin
        self._between, self._between_bytes, self._shown_between = _one(between), len(between), _one(shown_between)
        self._end, self._end_bytes, self._shown_end = _one(rest), len(rest), _one(shown_rest)
        self._hidden_bytes = len(event) - len(shown)

    def shown(self, chunk: bytes, now_s: float) -> bytes | None:
        """The chunk in which the event in `chunk` is shown; None if that is not one event like the one remembered.

        It came at `now_s`; below 0: in one read with the one before. What its strings say changes nothing, "error" too.
        """
        chunk_bytes = len(chunk)
        try:
            size_line = _SIZE_LINE_OF[chunk_bytes]
        except KeyError:
            return None  # it is too large, or no chunk that says its size has so many bytes
        line_bytes = len(size_line)
        begin = line_bytes + self._start_bytes
        end = chunk.find(b'"', begin)
        text = chunk[begin:end]
        if _find_odd(text):
            text = cast("re.Match[bytes]", _escaped(chunk, begin))[0]  # which may have quotes, if they are escaped
            end = begin + len(text)
            if not _is_utf8(text):
                return None
        filler = b""
        if self._between_bytes:
            filler = chunk[end + self._between_bytes : chunk_bytes - self._end_bytes]
            if not filler.isalnum() and _find_odd(filler):
                return None
        if b"".join((size_line, self._start, text, self._between, filler, self._end)) != chunk:
            return None
        self.kept.extend((now_s, text, chunk_bytes))
        if not self._hidden_bytes:
            return chunk
        size_line = _SIZE_LINES[chunk_bytes - line_bytes - self._hidden_bytes - 2]
        return b"".join((size_line, self._start, text, self._shown_between, filler, self._shown_end))

    def take(self) -> Passed:
        """All that is to be told of those shown since the last time; then nothing of them is kept."""
        kept, hidden_bytes = self.kept, self._hidden_bytes
        times_s: list[float] = [when_s for when_s in kept[::3] if when_s >= 0]
        texts: list[bytes] = kept[1::3]
        sizes = [chunk_bytes - len(_SIZE_LINE_OF[chunk_bytes]) - 2 for chunk_bytes in kept[2::3]]
        kept.clear()
        body_bytes = sum(sizes)
        shown_bytes = body_bytes - hidden_bytes * len(sizes)
        framing_bytes = sum([len(_SIZE_LINES[size - hidden_bytes]) + 2 for size in sizes])
        said = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % b"".join(texts)
        return Passed(len(sizes), times_s, body_bytes, shown_bytes, shown_bytes + framing_bytes, said)


@lru_cache(maxsize=256)
def _one(part: bytes) -> bytes:
    """One object for what many streams have in common: of what is their own, little is in the caches."""
    return part


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
