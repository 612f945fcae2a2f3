"""What the proxy must know of a JSON request body, and edits of it that keep every other byte.

A body goes upstream as it was received, so what is read here must be what the upstream will read. Members that two
parsers may read differently (given twice, or spelled in another case, which Go's parser takes for the same) are
refused, if they are members we decide by.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from proxy.core.errors import BAD_REQUEST, INVALID_TYPE, MISSING_PARAMETER, ProxyError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The members of a request that decide something here.
_READ_MEMBERS: Final = frozenset({"model", "stream", "stream_options"})

_BOM: Final = b"\xef\xbb\xbf"
_OPENING: Final = re.compile(rb"[ \t\n\r]*+\{[ \t\n\r]*+")
# From the opening brace, or from the end of a value, over the next name to the value it names.
_TO_VALUE: Final = re.compile(
    rb"""
    (?: \A [\x20\t\n\r]*+ \{ | [\x20\t\n\r]*+ , )  [\x20\t\n\r]*+
    ( " [^"\\]*+ (?: \\. [^"\\]*+ )*+ " )  [\x20\t\n\r]*+ : [\x20\t\n\r]*+
    """,
    re.VERBOSE,
)
_CLOSING: Final = re.compile(rb"[ \t\n\r]*+\}[ \t\n\r]*+\Z")

_RAW_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Members(NamedTuple):
    """Where the members of a body's top-level object are, in bytes.

    `spans`: from name to start and end of the value; of a name given twice, the last. `insert_at`: where a new member
    may be put, as `"name":value,`, or without the comma if there is no other.
    """

    spans: Mapping[str, tuple[int, int]]
    insert_at: int


class MeteredRequest(NamedTuple):
    """What a metered request says of itself. A `stream` of null is false, `stream_options` of null are none."""

    model: str
    stream: bool
    has_stream_options: bool


def read_metered(body: bytes) -> MeteredRequest:
    """Read the body of a metered route.

    Raises ProxyError BAD_REQUEST, INVALID_TYPE or MISSING_PARAMETER. Messages name the member, never its value.
    """
    spans = members(body).spans
    model = _model(body, spans)
    if model is None:
        raise ProxyError(MISSING_PARAMETER, "You must provide a model parameter.", param="model")
    stream = _value(body, spans, "stream")
    if stream not in {b"true", b"false", b"null"}:
        raise ProxyError(INVALID_TYPE, "Invalid type for 'stream': expected a boolean.", param="stream")
    options = _value(body, spans, "stream_options")
    if options != b"null" and not options.startswith(b"{"):
        raise ProxyError(INVALID_TYPE, "Invalid type for 'stream_options': expected an object.", param="stream_options")
    if options != b"null" and stream != b"true":
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise ProxyError(BAD_REQUEST, message, param="stream_options")
    return MeteredRequest(model, stream == b"true", options != b"null")


def read_model(body: bytes) -> str | None:
    """The model that an inference request names; None if it names none.

    Raises ProxyError BAD_REQUEST or INVALID_TYPE.
    """
    return _model(body, members(body).spans)


def replace_model(body: bytes, model: str) -> bytes:
    """The body with another value for its top-level member `model`, and every other byte as it was.

    Raises ProxyError as `read_model` does, and MISSING_PARAMETER if the body has no such member.
    """
    span = members(body).spans.get("model")
    if span is None:
        raise ProxyError(MISSING_PARAMETER, "You must provide a model parameter.", param="model")
    return b"".join((body[: span[0]], msgspec.json.encode(model), body[span[1] :]))


def members(body: bytes) -> Members:
    """Find the members of the top-level object of a JSON text.

    Raises ProxyError BAD_REQUEST if the body is not JSON (RFC 8259), not an object, nested too deeply, or ambiguous in
    a member that is read here.
    """
    if not body:
        raise ProxyError(BAD_REQUEST, "The request body is empty; it must be a JSON object.")
    if body.startswith(_BOM):
        # RFC 8259 section 8.1: must not be sent, may be ignored. Some upstreams would not ignore it, no SDK sends it.
        raise ProxyError(BAD_REQUEST, "The request body must not begin with a byte order mark.")
    try:
        if not body.isascii():
            body.decode()  # msgspec looks only into strings that it decodes
        found = _members_by_length(body)
        if found is None:
            found = _members_by_scan(body)
    except UnicodeDecodeError:
        raise ProxyError(BAD_REQUEST, "The request body is not valid UTF-8.") from None
    except RecursionError:
        raise ProxyError(BAD_REQUEST, "The request body is nested too deeply.") from None
    except ValueError:
        raise ProxyError(BAD_REQUEST, "We could not parse the JSON body of your request.") from None
    for name in found.spans:
        if name not in _READ_MEMBERS and (meant := name.casefold()) in _READ_MEMBERS:
            raise ProxyError(BAD_REQUEST, f"The name of member '{meant}' must be lower-case.", param=meant)
    return found


def _members_by_length(body: bytes) -> Members | None:
    r"""Let msgspec validate the body, and walk it by the lengths of the values it found; or None if that cannot be.

    It cannot where a name is given twice, and where msgspec is stricter than clients: a string that was cut at a length
    may hold half a surrogate pair, written `\ud83d`, which Python's and JavaScript's encoders send as it is.
    """
    try:
        values = _RAW_MEMBERS.decode(body)
    except msgspec.ValidationError:
        raise ProxyError(BAD_REQUEST, "The request body must be a JSON object.") from None
    except msgspec.DecodeError:
        return None
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    for name, raw in values.items():
        value = memoryview(raw)
        to_value = _TO_VALUE.match(body, position)
        # of a name given twice there is only the last value, so at some point the walk and the body disagree
        if to_value is None or not body.startswith(value, to_value.end()):
            return None
        position = to_value.end() + len(value)
        spans[name] = (to_value.end(), position)
    opening = _OPENING.match(body)
    if opening is None or not _CLOSING.match(body, position if spans else opening.end()):
        return None
    return Members(spans, opening.end())


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Numbers are only passed over: as floats, because int refuses more than 4300 digits.
_SCANNER: Final = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)


def _members_by_scan(body: bytes) -> Members:
    """Walk the body value by value with the standard library's parser. Raises ValueError if it is not JSON.

    Decoded as Latin-1 a character is a byte, so positions are offsets; all that JSON is made of is ASCII.
    """
    opening = _OPENING.match(body)
    if opening is None:
        raise ValueError("not an object")
    text = body.decode("latin-1")
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    while to_value := _TO_VALUE.match(body, position):
        name: str = json.loads(to_value[1])
        if name in spans and name in _READ_MEMBERS:
            raise ProxyError(BAD_REQUEST, f"The request body has more than one member '{name}'.", param=name)
        _, position = _SCANNER.raw_decode(text, to_value.end())
        spans[name] = (to_value.end(), position)
    if not _CLOSING.match(body, position):
        raise ValueError("not an object")
    return Members(spans, opening.end())


def _value(body: bytes, spans: Mapping[str, tuple[int, int]], name: str) -> bytes:
    """The member's value as JSON text; null if there is no such member."""
    span = spans.get(name)
    return body[span[0] : span[1]] if span else b"null"


def _model(body: bytes, spans: Mapping[str, tuple[int, int]]) -> str | None:
    value = _value(body, spans, "model")
    if value == b"null":
        return None
    if not value.startswith(b'"'):
        raise ProxyError(INVALID_TYPE, "Invalid type for 'model': expected a string.", param="model")
    try:
        return msgspec.json.decode(value, type=str) or None
    except msgspec.DecodeError:
        raise ProxyError(BAD_REQUEST, "The value of 'model' is not valid Unicode.", param="model") from None
