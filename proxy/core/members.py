"""Find the members of a JSON object, and where they stand in its text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from proxy.core.errors import BAD_REQUEST, ProxyError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

# Chat has some forty members. Each costs time of the event loop, so there may not be any number of them.
MAX_MEMBERS: Final = 1000

_OPENING: Final = re.compile(rb"[ \t\n\r]*+\{[ \t\n\r]*+")
# From the opening brace, or from the end of a value, over the next name to the value it names.
_TO_VALUE: Final = re.compile(
    rb"""
    (?: \A [\x20\t\n\r]*+ \{ | [\x20\t\n\r]*+ , )  [\x20\t\n\r]*+
    ( " [^"\\]*+ (?: \\. [^"\\]*+ )*+ " )  [\x20\t\n\r]*+ : [\x20\t\n\r]*+
    """,
    re.VERBOSE,
)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")

_COMPACT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_AGAIN: Final = msgspec.json.Encoder()


class Members(NamedTuple):
    """Where the members of a body's top-level object are, in bytes.

    `spans`: from name to start and end of the value; of a name given twice, the last. `insert_at`: where a new member
    may be put, as `"name":value,`, or without the comma if there is no other.
    """

    spans: Mapping[str, tuple[int, int]]
    insert_at: int


def compact_members(body: bytes) -> dict[str, msgspec.Raw] | None:
    """From name to the value's text; None for every other text, whether or not it is an object. Never raises.

    Of a name given twice a parser shows the last value, and escapes in a name it undoes. So what it shows is written
    again: where that is the same text, there is nothing that it did not show, and no white space between members.
    """
    try:
        if not body.isascii():
            body.decode()  # msgspec looks only into strings that it decodes
        values = _COMPACT.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    return values if len(values) <= MAX_MEMBERS and _AGAIN.encode(values) == body else None


class _Name:
    """Stands for a member's name while msgspec decodes: no two are equal, so that a name given twice stays two."""

    __slots__ = ()


def value_lengths(body: bytes) -> list[int]:
    """Let msgspec validate the body; the length of each top-level value, in bytes and in order.

    Raises msgspec.DecodeError (a ValueError), and ProxyError at the first member too many, whatever comes behind it.
    """
    try:
        return _decoded_lengths(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # A string that was cut at a length may hold half a surrogate pair, written `\ud83d`. Python's and JavaScript's
        # encoders send that as it is, and msgspec is stricter. Anything else of this length does for the lengths;
        # first the escaped backslashes, as what follows one is no escape.
        blanked = _SURROGATE.sub(b"______", body.replace(rb"\\", b"__"))
        if blanked == body:
            raise
        return _decoded_lengths(blanked)


def _decoded_lengths(text: bytes) -> list[int]:
    count = 0

    def named(_type: type, _name: str) -> _Name:
        nonlocal count
        count += 1
        if count > MAX_MEMBERS:
            raise ProxyError(BAD_REQUEST, f"The request body has more than {MAX_MEMBERS} members.")
        return _Name()

    values = msgspec.json.decode(text, type=dict[_Name, msgspec.Raw], dec_hook=named).values()
    return [len(memoryview(value)) for value in values]


def walk(body: bytes, lengths: list[int], read: AbstractSet[str], within: str | None = None) -> Members:
    """Find the members of a valid object by the lengths of its values.

    Raises ProxyError BAD_REQUEST if one of those that are `read` is ambiguous; `within` names the member whose value
    the object is.
    """
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    for length in lengths:
        to_value = _TO_VALUE.match(body, position)
        if to_value is None:
            raise ValueError("no member where one was decoded")
        name = _text(to_value[1])
        if name not in read and (meant := name.casefold()) in read:
            message = f"The name of member '{_path(within, meant)}' must be lower-case."
            raise ProxyError(BAD_REQUEST, message, param=within or meant)
        if name in spans and name in read:
            message = f"The request body has more than one member '{_path(within, name)}'."
            raise ProxyError(BAD_REQUEST, message, param=within or name)
        position = to_value.end() + length
        spans[name] = (to_value.end(), position)
    opening = _OPENING.match(body)
    if opening is None:
        raise ValueError("not an object")
    return Members(spans, opening.end())


def _path(within: str | None, name: str) -> str:
    return f"{within}.{name}" if within else name


def _text(quoted: bytes) -> str:
    """What a JSON string says. Only the standard library reads half a surrogate pair."""
    text: str = json.loads(quoted) if b"\\" in quoted else quoted[1:-1].decode()
    return text
