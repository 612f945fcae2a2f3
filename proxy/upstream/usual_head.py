"""The usual head of a response, by a few calls: whole in one read, a 200 of HTTP/1.1, framed once and without a doubt.

What is anything else, or could be read in two ways, is left to `framing.py`, which would say the same of these.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.patterns import Remembered

MAX_USUAL_BYTES: Final = 8 * 1024  # less than `framing.py` takes, in lines too
_MAX_USUAL_LINES: Final = 128

_REASONS: Final = {b"HTTP/1.1 200 OK": b"OK", b"HTTP/1.1 200 ": b"", b"HTTP/1.1 200": b""}
_TEXT: Final = bytes(range(0x20, 0x7F))
_TOKEN: Final = re.compile(rb"[!#-'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_FRAMING: Final = frozenset(
    (b"connection", b"content-length", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_NO_NAME: Final = b":"
_MAX_DIGITS: Final = 18


def _doubt(spelled: bytes) -> bytes:
    """b"" for a header's name that can be passed over, `_NO_NAME` for what is none, else the name in lower case."""
    name = spelled.lower()
    return _NO_NAME if _TOKEN.fullmatch(name) is None else name if name in _FRAMING else b""


_doubts: Final = Remembered(_doubt)


def usual_head(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], int | None, bytes] | None:
    """The reason, headers, Content-Length (None: the body is chunked) of a usual head, and what follows it.

    None for any other head, and for one that is not whole.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    reason = _REASONS.get(status)
    if not end or reason is None or len(head) > MAX_USUAL_BYTES or len(lines) > _MAX_USUAL_LINES:
        return None
    if len(head.translate(None, _TEXT)) != 2 * len(lines):  # more than the ends of the lines
        return None
    headers, doubts, framing = [], _doubts, None
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.strip()
        headers.append((name, value))
        doubt = doubts[name]
        if not value or (doubt and not (doubt == b"connection" and value.lower() == b"keep-alive")):
            if framing is not None:
                return None
            framing = doubt, value
    if framing is None:
        return None
    doubt, value = framing
    if doubt == b"content-length" and value.isdigit() and len(value) <= _MAX_DIGITS:
        return reason, headers, int(value), rest
    if doubt == b"transfer-encoding" and value.lower() == b"chunked":
        return reason, headers, None, rest
    return None
