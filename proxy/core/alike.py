"""Events that are like the one before but for a text: what was found out about that one holds for them as well.

A model's answer comes in hundreds of chunks that have all but their text in common. When one was found to be a usual
event, an event that differs from it inside of strings alone is one too, and is shown likewise. Of all of them together
no more than their texts need be kept.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.usual_chunks import usual_text

MAX_ALIKE_BYTES: Final = 2048  # of one event; a larger one is not worth a short way
# In valid JSON a value that is a string begins behind it, wherever it stands.
_TEXT: Final = b'"content":"'
# what is tried in its place: of two members of one name the last counts, and may say one of these, but not both
_TRIED: Final = (b"text", b"")
# OpenAI's own filler, random in each chunk
_FILLER: Final = b'"obfuscation":"'
_USAGE: Final = b'"usage"'
# what a string in JSON rarely holds, and what it may: other languages, code, the end of a paragraph
_ODD: Final = re.compile(rb"[^ !#-\[\]-~]")
_ESCAPED: Final = re.compile(rb'(?:[^"\\\x00-\x1f]|\\[nrt"\\/bf])*+')
_LINE_END: Final = b"\r\n"
_NOTHING: Final = b"\n"  # no event begins so


class AlikeEvents:
    """Remembers one event, and tells what is shown of others that are like it.

    Only for events that follow one another, each in a chunk (RFC 9112 section 7.1) by itself: they come and go with the
    line end that ends it. `texts` are what the events said that were shown, as it stands in JSON strings.
    """

    __slots__ = ("_between", "_end", "_end_bytes", "_is_shown_whole", "_least_bytes", "_shown_between", "_shown_end",
                 "_start", "_start_bytes", "texts")  # fmt: skip

    def __init__(self) -> None:
        self.texts = bytearray()
        self._start = _NOTHING  # up to the text
        self._start_bytes = 1
        self._between = self._shown_between = b""  # from the text's end to the filler; empty without one
        self._end = self._shown_end = b""  # from the end of the filler, or of the text
        self._end_bytes = self._least_bytes = 0
        self._is_shown_whole = False

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
            self._between = self._shown_between = b""
            self._end, self._shown_end = event[end:] + _LINE_END, shown[end:] + _LINE_END
        else:
            filler_end = event.find(b'"', filler)
            if _ODD.search(event, filler, filler_end) or not shown.endswith(event[filler:]):
                return
            self._between = event[end:filler]
            self._shown_between = shown[end : len(shown) - (len(event) - filler)]
            self._end = self._shown_end = event[filler_end:] + _LINE_END
        self._start, self._start_bytes, self._end_bytes = event[:begin], begin, len(self._end)
        self._least_bytes = begin + self._end_bytes
        self._is_shown_whole = shown == event

    def shown(self, event: bytes) -> bytes | None:
        """What is shown of `event`, itself if all is; None if it is not like the one remembered."""
        if not (self._least_bytes <= len(event) <= MAX_ALIKE_BYTES and event.startswith(self._start)):
            return None
        if not event.endswith(self._end) or b"error" in event:
            return None
        text = shown = event[self._start_bytes : -self._end_bytes]
        if self._between:
            text, between, filler = text.partition(self._between)
            if not between or _ODD.search(filler):
                return None
            shown = text + self._shown_between + filler
        if _ODD.search(text) and not (_ESCAPED.fullmatch(text) and _is_utf8(text)):
            return None
        self.texts += text
        return event if self._is_shown_whole else self._start + shown + self._shown_end

    def said(self) -> bytes:
        """One usual event that says what all of them said, for whoever wants to know no more; forgets their texts."""
        event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % bytes(self.texts)
        self.texts.clear()
        return event


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
