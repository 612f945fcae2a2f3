"""A body on the wire, in each framing and cut at drawn places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fakes.line import LAST_CHUNK, chunk, head

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


def framed(body: bytes, framing: str, draw: random.Random) -> bytes:
    """The whole answer on the wire, framed by `length`, by `close`, or in chunks of drawn lengths."""
    if framing == "length":
        return head("200 OK", "text/event-stream", f"Content-Length: {len(body)}", chunked=False) + body
    if framing == "close":
        return head(chunked=False) + body
    return head() + b"".join(chunk(piece) for piece in cut_at_random(body, draw)) + LAST_CHUNK


def cut_at_random(data: bytes, draw: random.Random) -> Iterator[bytes]:
    """Pieces of drawn lengths, mostly short."""
    start = 0
    while start < len(data):
        end = start + draw.choice((1, 2, 3, 7, 31, 120, 500))
        yield data[start:end]
        start = end
