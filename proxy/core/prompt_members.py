"""The members of a request that a prompt is in, whatever they hold."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

# A body with more braces, brackets and commas than this is not walked, which would take too long: it is taken for text
# in JSON. OpenAI takes at most 300,000 token ids in a request.
MAX_STRUCTURE: Final = 320_000
_LOOK_BYTES: Final = 65536
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class PromptMembers(msgspec.Struct):
    """The members that count. Each may hold anything: what the upstream will refuse is estimated, too."""

    model: Any = None
    messages: Any = None
    prompt: Any = None
    suffix: Any = None
    input: Any = None
    instructions: Any = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    text: Any = None
    n: Any = None
    best_of: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    max_output_tokens: Any = None


_DECODER: Final = msgspec.json.Decoder(PromptMembers)


def read_prompt(body: bytes) -> PromptMembers:
    """Raises ValueError where the body is no object, cannot be decoded, or is more than may be walked."""
    if len(body) > MAX_STRUCTURE and _structure(body) > MAX_STRUCTURE:
        raise ValueError("more than may be walked")
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError:
        # Half a surrogate pair, which msgspec refuses, is replaced; first the escaped backslashes, as what follows one
        # is no escape. For a count either is as good as what was there.
        return _DECODER.decode(_SURROGATE.sub(rb"\\ufffd", body.replace(rb"\\", b"__")))


def _structure(body: bytes) -> int:
    """How many braces, brackets and commas there are; a look at a time, so that other threads get their turn."""
    starts = range(0, len(body), _LOOK_BYTES)
    return sum(body.count(mark, start, start + _LOOK_BYTES) for start in starts for mark in (b"{", b"[", b","))
