"""What the proxy must know of a JSON request body, and where it stands there, for edits that keep every other byte.

A body goes upstream as it was received, so what is read here must be what the upstream will read. Members that two
parsers may read differently (given twice, or spelled in another case, which Go's parser takes for the same) are
refused, if they are members we decide by.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.errors import BAD_REQUEST, INVALID_TYPE, INVALID_VALUE, MISSING_PARAMETER, ProxyError
from proxy.core.members import Members, compact_members, value_lengths, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Start and end of what is replaced, in bytes, and what takes its place.
Edit = tuple[int, int, bytes]

# The members of a request, and of its stream_options, that decide something here.
_AMOUNTS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of")
_READ_MEMBERS: Final = frozenset({"model", "stream", "stream_options", *_AMOUNTS})
# up to a billion: what is reserved must be what the upstream may do, and to some a negative one means "no limit"
_AMOUNT: Final = re.compile(rb"0|[1-9][0-9]{0,8}|null")
_NUMBER: Final = re.compile(rb"-?[0-9]+")
_READ_OPTIONS: Final = frozenset({"include_usage", "continuous_usage_stats"})

_ASKS_USAGE: Final = b'"include_usage":true'
_ASKING: Final = b"{%b}" % _ASKS_USAGE
_MODEL_NAME: Final = b'"model":'
# Of more the short way may take longer than the long one: it looks at all members before it knows how many they are.
_MOST_COMPACT_BYTES: Final = 65536

_BOM: Final = b"\xef\xbb\xbf"
_STRING: Final = msgspec.json.Decoder(str)


class MeteredRequest(msgspec.Struct, frozen=True, gc=False):
    """What a metered request says of itself. A `stream` of null is false, `stream_options` of null are none.

    `model_span`: start and end of the model's value, quotes included, in bytes. `usage_edit`: what makes a streamed
    chat or completions request ask for `include_usage`; None where it does, and where it is better left as it is.
    """

    model: str
    model_span: tuple[int, int]
    stream: bool
    usage_edit: Edit | None


def read_metered(body: bytes) -> MeteredRequest:
    """Read the body of a metered route.

    Raises ProxyError BAD_REQUEST, INVALID_TYPE, INVALID_VALUE or MISSING_PARAMETER. Messages name the member, never its
    value.
    """
    return _read_usual(body) or _read_any(body)


def _read_usual(body: bytes) -> MeteredRequest | None:
    """As `_read_any` would; None for what that must judge."""
    values = compact_members(body) if len(body) <= _MOST_COMPACT_BYTES else None
    if values is None:
        return None
    names = "".join(values)
    if not (names.isascii() and names.islower()):  # as all are that APIs have: none is another spelling of one read
        return None
    for name in _AMOUNTS:
        if name in values and _AMOUNT.fullmatch(values[name]) is None:
            return None
    # a string cannot hold this, so the only one there is names the member
    if "model" not in values or body.count(_MODEL_NAME) != 1:
        return None
    start = body.find(_MODEL_NAME) + len(_MODEL_NAME)
    try:
        model = _STRING.decode(values["model"])
    except msgspec.DecodeError:
        return None
    if not model:
        return None
    model_span = start, start + len(memoryview(values["model"]))
    stream, options = values.get("stream"), values.get("stream_options")
    if stream is None or bytes(stream) == b"false":
        return MeteredRequest(model, model_span, stream=False, usage_edit=None) if options is None else None
    if bytes(stream) != b"true":
        return None
    if options is None:
        return MeteredRequest(model, model_span, stream=True, usage_edit=(1, 1, b'"stream_options":%b,' % _ASKING))
    return MeteredRequest(model, model_span, stream=True, usage_edit=None) if bytes(options) == _ASKING else None


def _read_any(body: bytes) -> MeteredRequest:
    spans, insert_at = members(body)
    model, model_span = _model(body, spans)
    if model is None or model_span is None:
        raise ProxyError(MISSING_PARAMETER, "You must provide a model parameter.", param="model")
    for name in _AMOUNTS:
        if name in spans:
            _check_amount(name, _value(body, spans, name))
    stream = _value(body, spans, "stream")
    if stream not in {b"true", b"false", b"null"}:
        raise ProxyError(INVALID_TYPE, "Invalid type for 'stream': expected a boolean.", param="stream")
    options = _value(body, spans, "stream_options")
    if options != b"null" and not options.startswith(b"{"):
        raise ProxyError(INVALID_TYPE, "Invalid type for 'stream_options': expected an object.", param="stream_options")
    if options != b"null" and stream != b"true":
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise ProxyError(BAD_REQUEST, message, param="stream_options")
    if stream != b"true":
        return MeteredRequest(model, model_span, stream=False, usage_edit=None)
    edit: Edit | None
    if options != b"null":
        edit = _usage_edit(options, spans["stream_options"][0])
    elif "stream_options" in spans:
        edit = (*spans["stream_options"], _ASKING)
    else:
        edit = (insert_at, insert_at, b'"stream_options":%b,' % _ASKING)
    return MeteredRequest(model, model_span, stream=True, usage_edit=edit)


def _check_amount(name: str, value: bytes) -> None:
    if _AMOUNT.fullmatch(value) is not None:
        return
    if _NUMBER.fullmatch(value) is None:
        raise ProxyError(INVALID_TYPE, f"Invalid type for '{name}': expected an integer.", param=name)
    raise ProxyError(INVALID_VALUE, f"Invalid value for '{name}': expected 0 to 999999999.", param=name)


def edited(body: bytes, edits: Iterable[Edit]) -> bytes:
    """The body with these places replaced, given in any order, and every other byte as it was.

    Raises ValueError if two overlap.
    """
    parts: list[bytes] = []
    position = 0
    for start, end, replacement in sorted(edits):
        if start < position:
            raise ValueError("edits overlap")
        parts += (body[position:start], replacement)
        position = end
    parts.append(body[position:])
    return b"".join(parts)


def read_model(body: bytes) -> tuple[str, tuple[int, int]] | tuple[None, None]:
    """The model that an inference request names, and start and end of that value; None twice if it names none.

    Raises ProxyError BAD_REQUEST or INVALID_TYPE.
    """
    return _model(body, members(body).spans)


def members(body: bytes) -> Members:
    """Find the members of the top-level object of a JSON text.

    Raises ProxyError BAD_REQUEST if the body is not JSON (RFC 8259), not an object, nested too deeply, has more than
    `MAX_MEMBERS` members, or is ambiguous in a member that is read here.
    """
    if not body:
        raise ProxyError(BAD_REQUEST, "The request body is empty; it must be a JSON object.")
    if body.startswith(_BOM):
        # RFC 8259 section 8.1: must not be sent, may be ignored. Some upstreams would not ignore it, no SDK sends it.
        raise ProxyError(BAD_REQUEST, "The request body must not begin with a byte order mark.")
    try:
        if not body.isascii():
            body.decode()  # msgspec looks only into strings that it decodes
        return walk(body, value_lengths(body), _READ_MEMBERS)
    except UnicodeDecodeError:
        raise ProxyError(BAD_REQUEST, "The request body is not valid UTF-8.") from None
    except RecursionError:
        raise ProxyError(BAD_REQUEST, "The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise ProxyError(BAD_REQUEST, "The request body must be a JSON object.") from None
    except ValueError:
        raise ProxyError(BAD_REQUEST, "We could not parse the JSON body of your request.") from None


def _usage_edit(options: bytes, offset: int) -> Edit | None:
    """The edit that makes stream_options ask for usage, None where they do; they stand at `offset` of the body.

    `continuous_usage_stats` is vLLM's. It puts figures on every chunk as soon as usage is asked for, and these could
    not be hidden: who switches it on, by whatever vLLM takes for true, is served as asked. Raises ProxyError
    BAD_REQUEST.
    """
    spans, insert_at = walk(options, value_lengths(options), _READ_OPTIONS, within="stream_options")
    if not {_value(options, spans, name) for name in _READ_OPTIONS} <= {b"false", b"null"}:
        return None
    if "include_usage" in spans:
        start, end = spans["include_usage"]
        return offset + start, offset + end, b"true"
    at = offset + insert_at
    return at, at, _ASKS_USAGE + b"," if spans else _ASKS_USAGE


def _value(body: bytes, spans: Mapping[str, tuple[int, int]], name: str) -> bytes:
    """The member's value as JSON text; null if there is no such member."""
    span = spans.get(name)
    return body[span[0] : span[1]] if span else b"null"


def _model(body: bytes, spans: Mapping[str, tuple[int, int]]) -> tuple[str, tuple[int, int]] | tuple[None, None]:
    value = _value(body, spans, "model")
    if value == b"null":
        return None, None
    if not value.startswith(b'"'):
        raise ProxyError(INVALID_TYPE, "Invalid type for 'model': expected a string.", param="model")
    try:
        model = msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        raise ProxyError(BAD_REQUEST, "The value of 'model' is not valid Unicode.", param="model") from None
    return (model, spans["model"]) if model else (None, None)
