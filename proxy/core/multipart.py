"""Find the `model` field of a multipart/form-data body while it streams (audio, image edits).

The body is not kept: what is fed may go on at once. As with JSON bodies, a form that two parsers may read differently
is refused where it decides the model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.core.errors import BAD_REQUEST, ProxyError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_MODEL_BYTES: Final = 256
# An edit of sixteen images has some twenty-five parts. Each costs time of the event loop, as do the following.
MAX_PARTS: Final = 128
# A part of a form has two or three headers; the longest holds a file's name.
MAX_PART_HEADERS: Final = 8
MAX_PART_HEADER_BYTES: Final = 4096
# The parser of header parameters takes time by the square of the semicolons, within quotes too.
MAX_SEMICOLONS: Final = 32

# RFC 2046 section 5.1.1: up to 70 of these characters, the last no space.
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_BOUNDARY_PARAMETER: Final = re.compile(rb";\s*boundary\*?\d*\*?\s*=", re.IGNORECASE)
_NAME_PARAMETER: Final = re.compile(rb";\s*name(\*[\d*]*)?\s*=", re.IGNORECASE)
_CONTROL_CHARACTER: Final = re.compile(rb"[\x00-\x1f\x7f]")


class ModelFinder:
    """Fed a form body as it arrives, knows its `model` as soon as that field is complete.

    `model`: the field's value; None while it was not seen, or if it is empty.
    `span`: where the value is in the body, in bytes from its start, for an edit that keeps every other byte.
    Raises ProxyError BAD_REQUEST if `content_type` is no multipart/form-data with a usable boundary.
    """

    def __init__(self, content_type: bytes) -> None:
        self.model: str | None = None
        self.span: tuple[int, int] | None = None
        self._fed_bytes = 0  # before what is being fed
        self._header_name = b""
        self._header_value = b""
        self._disposition: bytes | None = None
        self._parts = 0  # so far
        self._fields = 0  # of those, named `model`
        self._value: bytearray | None = None  # of the `model` field, while the parser is in it
        self._value_at = 0
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
        }
        boundary = _boundary(content_type)
        self._delimiter = b"\r\n--" + boundary
        self._parser = MultipartParser(
            boundary,
            callbacks,
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises ProxyError BAD_REQUEST if the form is malformed, has more than `MAX_PARTS` parts, or its `model` is given
        twice, too long or ambiguous; nothing may be fed after that. A second `model` is only noticed if the body is fed
        to its end.
        """
        # also lines that only begin like a delimiter cost time, though RFC 2046 section 5.1.1 forbids them in a part
        if data.count(self._delimiter) > MAX_PARTS:
            raise _too_many_parts()
        try:
            self._parser.write(data)
        except FormParserError:
            # the parser's message quotes bytes of the body
            raise ProxyError(BAD_REQUEST, "We could not parse the multipart body of your request.") from None
        self._fed_bytes += len(data)

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _too_many_parts()
        self._disposition = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        name, value = self._header_name.lower(), self._header_value
        self._header_name = self._header_value = b""
        if b"\n" in value:  # the parser ends lines at CR LF only, others at LF too: they would see another header
            raise ProxyError(BAD_REQUEST, "A header in the form contains a line feed.")
        if name == b"content-disposition":
            if self._disposition is not None:
                raise _ambiguous()
            self._disposition = value

    def _on_headers_finished(self) -> None:
        if self._disposition is None or not _is_model_field(self._disposition):
            return
        self._fields += 1
        if self._fields > 1:
            raise ProxyError(BAD_REQUEST, "The form has more than one field 'model'.", param="model")
        self._value = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            return
        if not self._value:
            # Only wrong where a value begins like the boundary: that comes from the parser's own copy of it, not from
            # what was fed. It begins with CR, for which the value is refused at its end.
            self._value_at = self._fed_bytes + start
        self._value += data[start:end]
        if len(self._value) > MAX_MODEL_BYTES:
            message = f"The field 'model' is longer than {MAX_MODEL_BYTES} bytes."
            raise ProxyError(BAD_REQUEST, message, param="model")

    def _on_part_end(self) -> None:
        if self._value is None:
            return
        value, self._value = bytes(self._value), None
        if _CONTROL_CHARACTER.search(value):
            raise ProxyError(BAD_REQUEST, "The field 'model' contains control characters.", param="model")
        try:
            self.model = value.decode() or None
        except UnicodeDecodeError:
            raise ProxyError(BAD_REQUEST, "The field 'model' is not valid UTF-8.", param="model") from None
        if value:
            self.span = (self._value_at, self._value_at + len(value))


def _boundary(content_type: bytes) -> bytes:
    media_type, parameters = _options(content_type)
    boundary = parameters.get(b"boundary", b"")
    if (
        media_type != b"multipart/form-data"
        or len(_BOUNDARY_PARAMETER.findall(content_type)) != 1
        or not _BOUNDARY.fullmatch(boundary)
    ):
        raise ProxyError(BAD_REQUEST, "The request must be multipart/form-data with a boundary (RFC 7578).")
    return boundary


def _is_model_field(disposition: bytes) -> bool:
    """Tell whether a part with this Content-Disposition holds the field `model`.

    Raises ProxyError BAD_REQUEST if parsers may differ about that: a second `name`, the extended form `name*`, which
    RFC 7578 section 4.2 forbids, stray quotes, and an empty file name, which is a file to some and a field to others.
    """
    names = _NAME_PARAMETER.findall(disposition)
    if len(names) > 1 or any(names):
        raise _ambiguous()
    kind, parameters = _options(disposition)
    name = parameters.get(b"name", b"")
    if name.translate(None, b"\"'\\ \t").lower() != b"model":
        return False
    is_file = b"filename" in parameters or b"filename*" in disposition.lower()
    if name != b"model" or kind != b"form-data" or (is_file and not parameters.get(b"filename")):
        raise _ambiguous()
    return not is_file


def _options(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """A header's value and its parameters. Raises ProxyError BAD_REQUEST where that would take long."""
    if value.count(b";") > MAX_SEMICOLONS:
        raise ProxyError(BAD_REQUEST, f"A header of the form has more than {MAX_SEMICOLONS} semicolons.")
    return parse_options_header(value)


def _too_many_parts() -> ProxyError:
    return ProxyError(BAD_REQUEST, f"The form has more than {MAX_PARTS} parts.")


def _ambiguous() -> ProxyError:
    return ProxyError(BAD_REQUEST, "A part of the form has an ambiguous Content-Disposition.")
