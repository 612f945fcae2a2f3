"""The usual head of a response, by a few calls: whole in one read, a 200 of HTTP/1.1, framed once and without a doubt.

What is anything else, or could be read in two ways, is left to `framing.py`, which would say the same of these.
"""

from __future__ import annotations

import re
from typing import Final

MAX_USUAL_BYTES: Final = 8 * 1024  # less than `framing.py` takes, in lines too
_MAX_USUAL_LINES: Final = 128

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 200(?: ([ -~]*))?\r\n")
# RFC 9110 section 5.6.2 has the characters of a name. With as many of these as line ends, a head has no other lines.
_LINE: Final = re.compile(rb"\r\n([!#-'*+\-.^_`|~0-9A-Za-z]++): ([!-~](?:[ -~]*[!-~])?)(?=\r\n|\Z)")
# in lower case; the names that say where the response ends, or what becomes of the connection
_FRAMING: Final = re.compile(
    rb"\n(?!connection: keep-alive(?:\r|\Z))"
    rb"(connection|content-length|keep-alive|proxy-connection|transfer-encoding|upgrade): ([^\r]*)"
)
_MAX_DIGITS: Final = 18


def usual_head(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], int | None, bytes] | None:
    """The reason, headers, Content-Length (None: the body is chunked) of a usual head, and what follows it.

    None for any other head, and for one that is not whole.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    status = _STATUS_LINE.match(head)
    if not end or status is None or len(head) > MAX_USUAL_BYTES:
        return None
    headers = _LINE.findall(head)
    framing = _FRAMING.findall(head.lower())
    if len(framing) != 1 or not len(headers) == head.count(b"\n") <= _MAX_USUAL_LINES:
        return None
    name, value = framing[0]
    if name == b"content-length" and value.isdigit() and len(value) <= _MAX_DIGITS:
        return status[1] or b"", headers, int(value), rest
    if name == b"transfer-encoding" and value == b"chunked":
        return status[1] or b"", headers, None, rest
    return None
