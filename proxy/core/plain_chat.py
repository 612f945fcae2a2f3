"""The usual chat, read at once: messages of a role and a text each, and nothing else that counts.

Most chats are of this shape, and are read a dozen times as fast as by looking for everything that a prompt may hold.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import Annotated, Final

import msgspec

from proxy.core.tokens import MAX_TOKENS

_Amount = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: str
    content: str


class PlainChat(msgspec.Struct, gc=False):
    """What counts of such a chat; the members that must be null may be there in others."""

    messages: list[_Message]
    model: str = ""
    n: _Amount | None = None
    max_completion_tokens: _Amount | None = None
    max_tokens: _Amount | None = None
    tools: None = None
    functions: None = None
    response_format: None = None
    prompt: None = None
    suffix: None = None
    input: None = None
    instructions: None = None
    text: None = None
    best_of: None = None
    max_output_tokens: None = None

    def texts(self) -> list[str]:
        """What the model is shown."""
        return [*chain.from_iterable(map(_SAID, self.messages))]


_SAID: Final = attrgetter("role", "content")
_DECODER: Final = msgspec.json.Decoder(PlainChat)


def read_plain_chat(body: bytes) -> PlainChat | None:
    """The chat, None if it is of another shape. Never raises."""
    try:
        return _DECODER.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
