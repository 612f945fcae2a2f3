"""Recorded chat streams in two forms: from an upstream that was asked for usage, and from the same one unasked."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from proxy.core.usage import Usage
from tests.fakes.recordings import CHAT, COMPLETIONS, RECORDINGS
from tests.fakes.usage_recordings import STREAMS

USAGE: Final = Usage(12, 3, cached_tokens=2)
_USAGE_CHUNK: Final = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15,'
    b'"prompt_tokens_details":{"cached_tokens":2}}}'
)
_NULL: Final = re.compile(rb',"usage":null|"usage":null,')
_USAGE_EVENT: Final = re.compile(rb'data: ?\{[^\r\n]*"choices":\[\],"usage":\{[^\r\n]*(\r\n\r\n|\n\n|\r\r)')
_CHUNK_END: Final = re.compile(rb'(data: ?\{[^\r\n]*"choices":[^\r\n]*)\}(?=[\r\n])')
_DONE: Final = re.compile(rb"data: ?\[DONE\]")
_ENDS: Final = (b"\r\n\r\n", b"\n\n", b"\r\r")
# what comes behind `[DONE]`, and a stream of nothing else, are no place for usage
_AFTER_DONE: Final = ("data-after-done", "done-alone")
_NOT_CHAT: Final = ("responses", "transcription", "speech", "images")


class Shape(NamedTuple):
    """A stream on `path`; `usage` is what the asked form tells, None where it tells nothing that settles it."""

    path: str
    asked: bytes
    unasked: bytes
    usage: Usage | None


def _told(path: str, asked: bytes, usage: Usage | None) -> Shape:
    """Of a stream that was recorded with usage."""
    return Shape(path, asked, _USAGE_EVENT.sub(b"", _NULL.sub(b"", asked)), usage)


def _made(path: str, unasked: bytes) -> Shape:
    """Of a stream that was recorded without: as OpenAI adds it, a null on each chunk and a chunk of its own."""
    ended = _DONE.search(unasked)
    at = len(unasked) if ended is None else max(unasked.rfind(end, 0, ended.start()) + len(end) for end in _ENDS)
    end = next(end for end in _ENDS if unasked[:at].endswith(end))
    asked = _CHUNK_END.sub(rb'\1,"usage":null}', unasked[:at]) + _USAGE_CHUNK + end + unasked[at:]
    return Shape(path, asked, unasked, USAGE)


def _shapes() -> dict[str, Shape]:
    shapes = {f"told, {name}": _told(CHAT, *told) for name, told in STREAMS.items() if not name.startswith(_NOT_CHAT)}
    for name, (path, body) in RECORDINGS.items():
        if path not in (CHAT, COMPLETIONS):
            continue
        if b'"usage"' in body or b'"error":{' in body or name in _AFTER_DONE:
            shapes[name] = _told(path, body, Usage(12, 12) if b'"completion_tokens":12' in body else None)
        else:
            # a chunk with this in it is no JSON: it would be left as it is, with its null
            shapes[name] = _made(path, body.replace(b"\x0b", b""))
    return shapes


SHAPES: Final = _shapes()
