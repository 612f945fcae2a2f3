"""Feeding bytes to a response reader, cut in every way, and saying what it made of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from proxy.core.errors import ProxyError
from proxy.upstream.framing import ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH_5 = OK + b"Content-Length: 5\r\n\r\n"


@dataclass
class Reading:
    """What a reader made of some bytes: "upstream_protocol_error", "complete" or "waiting", and what it had by then."""

    state: str
    body: bytes
    excess: bool
    head: object


def read(pieces: list[bytes], *, bodiless: bool = False, take: bool = False) -> Reading:
    reader = ResponseReader(bodiless=bodiless)
    body, state = b"", "waiting"
    try:
        for piece in pieces:
            reader.feed(memoryview(piece))
            if take:
                body += reader.take()
    except ProxyError as error:
        state = error.kind.outcome
    body += reader.take()
    assert reader.received_bytes == len(body)
    if reader.complete:
        state = "complete"
    return Reading(state, body, reader.excess, reader.head)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]
