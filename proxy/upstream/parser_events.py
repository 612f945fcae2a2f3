"""What httptools calls while it reads a response, and what is kept of it; `framing.py` makes sense of it."""

from __future__ import annotations

import functools


class HeadEvents:
    """What httptools calls as it reads a head."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, without the white space before its value."""
        self.headers.append((name, value.rstrip(b" \t")))


class ChunkEvents:
    """What httptools calls as it reads chunks. Apart from the reader, so that reader and parser do not hold each other.

    Trailers are dropped.
    """

    __slots__ = ("complete", "on_body", "on_chunk_complete", "on_chunk_header", "open_chunks")

    def __init__(self, body: bytearray) -> None:
        self.complete = False
        self.on_body = body.extend  # called for every piece of body: no frame of ours in between
        self.open_chunks: list[None] = []  # one, from a chunk's size to its end
        self.on_chunk_header = functools.partial(self.open_chunks.append, None)
        self.on_chunk_complete = self.open_chunks.clear

    def on_message_begin(self) -> None:
        """A response begins."""
        if self.complete:
            raise ValueError  # stops the parser before it takes what follows for a second response

    def on_message_complete(self) -> None:
        """It ended, trailers and all."""
        self.complete = True
