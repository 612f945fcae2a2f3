"""Events that are like the one before but for a text: what was found out about that one holds for them as well.

A model's answer comes in hundreds of chunks that have all but their text in common. When one was found to be a usual
event, an event that differs from it inside of strings alone is one too, and is shown likewise.
"""

from __future__ import annotations

import re
from typing import Final

# In valid JSON a value that is a string begins behind it, wherever it stands.
_TEXT: Final = b'"content":"'
# OpenAI's own filler, random in each chunk
_FILLER: Final = b'"obfuscation":"'
_USAGE: Final = b'"usage"'
# what ends a string, or stands for something else in one, or is for others to judge
_ODD: Final = re.compile(rb'["\\\x00-\x1f]|error')
_NOTHING: Final = b"\n"  # no event begins so


class AlikeEvents:
    """Remembers one event, and tells what is shown of others that are like it.

    Only for events that follow one another, each whole and read by itself.
    """

    __slots__ = ("_between", "_end", "_shown", "_start", "_start_bytes")

    def __init__(self) -> None:
        self._start = _NOTHING  # up to the text
        self._start_bytes = 0
        self._between = b""  # from the text's end to the filler, or to the event's end
        self._shown = b""  # what is shown of that
        self._end = b""  # from the filler's end; empty without one

    def forget(self) -> None:
        """Remember none."""
        self._start = _NOTHING

    def learn(self, event: bytes, shown: bytes) -> None:
        """Remember whole events that neither finished the answer nor had to be judged, and how they are shown.

        Nothing is remembered of several at once, nor of one that is not of the usual form.
        """
        self._start = _NOTHING
        if event.count(b"\n") != 2:
            return
        begin = event.find(_TEXT) + len(_TEXT)
        end = event.find(b'"', begin)
        filler = event.find(_FILLER, end) + len(_FILLER)
        filler_end = event.find(b'"', filler)
        if filler < len(_FILLER):
            filler = filler_end = len(event)
        if begin < len(_TEXT) or not 0 <= end <= filler <= filler_end:
            return
        after_bytes = len(event) - filler
        if not shown.startswith(event[:end]) or not shown.endswith(event[filler:]) or len(shown) < end + after_bytes:
            return
        if (
            (shown == event and _USAGE in event)
            or _ODD.search(event, begin, end)
            or _ODD.search(event, filler, filler_end)
        ):
            return  # a usage that was left is not understood
        self._start, self._start_bytes = event[:begin], begin
        self._between, self._end = event[end:filler], event[filler_end:]
        self._shown = shown[end : len(shown) - after_bytes]

    def shown(self, event: bytes) -> bytes | None:
        """What is shown of `event`; None if it is not like the one remembered."""
        if not event.startswith(self._start):
            return None
        begin = self._start_bytes
        end = event.find(b'"', begin)
        filler = end + len(self._between)
        if not event.startswith(self._between, end) or _ODD.search(event, begin, end):
            return None
        if self._end:
            filler_end = len(event) - len(self._end)
            if filler_end < filler or not event.endswith(self._end) or _ODD.search(event, filler, filler_end):
                return None
        elif filler != len(event):
            return None
        if not event.isascii() and not _is_utf8(event):
            return None
        return event[:end] + self._shown + event[filler:]


def _is_utf8(event: bytes) -> bool:
    try:
        event.decode()
    except UnicodeDecodeError:
        return False
    return True
