"""The framing of one HTTP/1.1 response: bytes in, its head and its body out; no I/O.

Strict where leniency lets two parties disagree about where a response ends (RFC 9112 sections 6, 7 and 11.2): whatever
is ambiguous is an error, and whatever follows a response is reported, so that nothing can pass for the next one.
httptools checks the syntax of heads and chunks; where the head ends and how the body is framed is decided here, because
httptools tells neither how far it read nor what it skipped.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Final

import httptools

from proxy.core.errors import UPSTREAM_PROTOCOL_ERROR, ProxyError

MAX_HEAD_BYTES: Final = 64 * 1024  # all of a head; servers and proxies send at most a few KiB
MAX_HEADER_LINES: Final = 256
MAX_INTERIM_HEADS: Final = 16  # 1xx before the final head
MAX_FRAMING_BYTES: Final = 64 * 1024  # chunk extensions and trailers, which are dropped, between two body bytes

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_STATUS_LINE_START: Final = b"HTTP/1."
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_WHOLE_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,6})\r\n(.+)\r\n", re.DOTALL)
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*([0-9]{1,9})(?:$|[,;\s])", re.IGNORECASE)
_FRAMING_HEADERS: Final = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A final response head. `headers` are as received: in order, with their case and their duplicates."""

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]] = field(repr=False)  # cookies may be among them


class _ParserEvents:
    """What httptools calls. Apart from the reader, so that reader and parser do not hold each other."""

    __slots__ = ("complete", "headers", "in_head", "on_body", "on_chunk_complete", "on_chunk_header", "open_chunks")

    def __init__(self, body: bytearray) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.in_head = True
        self.complete = False
        self.on_body = body.extend  # called for every piece of body: no frame of ours in between
        self.open_chunks: list[None] = []  # one, from a chunk's size to its end
        self.on_chunk_header = functools.partial(self.open_chunks.append, None)
        self.on_chunk_complete = self.open_chunks.clear

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError  # stops the parser before it takes what follows for a second response

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # else a trailer: dropped
            self.headers.append((name, value.rstrip(b" \t")))

    def on_message_complete(self) -> None:
        self.complete = True


class ResponseReader:
    """Reads one response. `feed` what arrives and `end` when the peer closes; `take` the body.

    Both raise a `ProxyError` of kind UPSTREAM_PROTOCOL_ERROR; body bytes from before the fault can still be taken.
    """

    __slots__ = (
        "_between_chunks",
        "_bodiless",
        "_events",
        "_framing_bytes",
        "_interim_heads",
        "_keep_alive",
        "_parser",
        "_partial_head",
        "_remaining_bytes",
        "_tail",
        "body",
        "close_delimited",
        "complete",
        "excess",
        "head",
        "keep_alive_s",
        "received_bytes",
        "started",
    )

    def __init__(self, *, bodiless: bool = False) -> None:
        """`bodiless`: whatever its head says, the response has no body (it answers HEAD or CONNECT)."""
        self.head: ResponseHead | None = None
        self.body = bytearray()  # received, not yet taken
        self.received_bytes = 0  # of body in all, framing excluded
        self.started = False  # any byte arrived
        self.complete = False  # the framing says that the response is whole
        self.excess = False  # bytes followed the response
        self.close_delimited = False
        self.keep_alive_s: int | None = None  # how long the upstream says it keeps the idle connection, in seconds
        self._bodiless = bodiless
        self._keep_alive = False
        self._partial_head = b""
        self._interim_heads = 0
        self._events = _ParserEvents(self.body)
        self._parser: httptools.HttpResponseParser | None = None  # of a chunked body
        self._remaining_bytes = 0  # of a body with Content-Length
        self._between_chunks = False  # the parser waits for the size of the next chunk, and has seen none of it
        self._framing_bytes = 0
        self._tail = b""

    @property
    def reusable(self) -> bool:
        """The connection may carry another exchange."""
        return self.complete and self._keep_alive and not self.excess and not self.close_delimited

    def feed(self, data: bytes | memoryview) -> None:
        """Take the bytes of one read, at least one."""
        self.started = True
        if self.complete:
            self.excess = True
            return
        if self.head is None:
            data = self._read_heads(data)
        if data:
            before = len(self.body)
            try:
                self._feed_body(data)
            finally:
                self.received_bytes += len(self.body) - before

    def whole_chunk(self, data: bytes | memoryview) -> bytes:
        """`feed` and `take` for the usual read, one whole chunk and nothing else; b"" for any other, which is not fed.

        The parser has no part in it: it stands behind a chunk before and after. Nothing may wait to be taken.
        """
        if not self._between_chunks or (chunk := _WHOLE_CHUNK.fullmatch(data)) is None:
            return b""
        digits, body = chunk.groups()
        if int(digits, 16) != len(body):
            return b""
        self.received_bytes += len(body)
        self._framing_bytes = 0
        return body

    def end(self, *, reset: bool = False) -> None:
        """The peer closed the connection (`reset`: or it broke). A body without framing is then whole, if not reset.

        RFC 9112 section 8: anything else is an incomplete message.
        """
        if self.complete:
            return
        if self.close_delimited and not reset:
            self.complete = True
            return
        if self.head is not None:
            raise _protocol_error("The upstream closed the connection in the middle of its response.")
        if self.started:
            raise _protocol_error("The upstream closed the connection in the middle of its response head.")
        raise _protocol_error("The upstream closed the connection before answering.")

    def take(self) -> bytes:
        """All body bytes that wait."""
        body = self.body
        if not body:
            return b""
        taken = bytes(body)
        body.clear()
        return taken

    def _read_heads(self, data: bytes | memoryview) -> bytes:
        """Read interim heads and the final one. Return what follows it, nothing while it is not whole."""
        searched = max(0, len(self._partial_head) - 3)
        text = self._partial_head + data
        while (end := text.find(b"\r\n\r\n", searched) + 4) > 3:
            self._read_head(text[:end])
            text = text[end:]
            searched = 0
            if self.head is not None:
                self._partial_head = b""
                return text
        # told at once, not when the peer closes: it may wait for us as we would wait for it
        if text[:7] != _STATUS_LINE_START[: len(text)]:
            raise _protocol_error("The upstream does not speak HTTP/1.x.")
        if _BARE_LF.search(text, searched):
            raise _protocol_error("The upstream sent a malformed response head.")
        if len(text) > MAX_HEAD_BYTES:
            raise _protocol_error("The upstream sent a response head that is too large.")
        self._partial_head = text
        return b""

    def _read_head(self, text: bytes) -> None:
        line = _STATUS_LINE.match(text)
        if line is None:
            raise _protocol_error("The upstream does not speak HTTP/1.x.")
        if len(text) > MAX_HEAD_BYTES or text.count(b"\n") > MAX_HEADER_LINES + 2:
            raise _protocol_error("The upstream sent a response head that is too large.")
        status = int(line[2])
        if status == 101:  # never asked for; what follows would not be HTTP (RFC 9110 section 15.2.2)
            raise _protocol_error("The upstream switched protocols unasked.")
        events = _ParserEvents(self.body)
        parser = httptools.HttpResponseParser(events)
        try:
            parser.feed_data(text)
        except httptools.HttpParserError as error:
            raise _protocol_error("The upstream sent a malformed response head.") from error
        if status < 200:
            self._interim_heads += 1
            if self._interim_heads > MAX_INTERIM_HEADS:
                raise _protocol_error("The upstream sent too many interim responses.")
            return
        events.in_head = False
        self._decide_framing(status, events, parser, http_1_1=line[1] == b"1")
        self.head = ResponseHead(status, line[3] or b"", events.headers)

    def _decide_framing(
        self, status: int, events: _ParserEvents, parser: httptools.HttpResponseParser, *, http_1_1: bool
    ) -> None:
        """RFC 9112 section 6.3, without its leniencies."""
        lengths, encodings = [], []
        self._keep_alive = http_1_1  # HTTP/1.0 keep-alive would have to be asked for
        for name, value in events.headers:
            key = name.lower()
            if key not in _FRAMING_HEADERS:
                continue
            if key == b"content-length":
                lengths.append(value)
            elif key == b"transfer-encoding":
                encodings.append(value.lower())
            elif key == b"connection":
                self._keep_alive &= b"close" not in [option.strip() for option in value.lower().split(b",")]
            elif timeout := _KEEP_ALIVE_TIMEOUT.search(value):
                self.keep_alive_s = int(timeout[1])
        if encodings and (encodings != [b"chunked"] or lengths or not http_1_1):
            raise _protocol_error("The upstream framed its response in a way that is not supported.")
        if lengths and (len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0])):
            raise _protocol_error("The upstream sent an invalid Content-Length.")
        if self._bodiless or status in {204, 304}:
            self.complete = True
        elif encodings:
            self._events, self._parser, self._between_chunks = events, parser, True
        elif lengths:
            self._remaining_bytes = int(lengths[0])
            self.complete = self._remaining_bytes == 0
        else:
            self.close_delimited = True

    def _feed_body(self, data: bytes | memoryview) -> None:
        if self._parser is not None:
            self._feed_chunks(self._parser, data)
        elif self.close_delimited:
            self.body += data
        else:
            taken = data[: self._remaining_bytes]
            self.body += taken
            self._remaining_bytes -= len(taken)
            self.complete = self._remaining_bytes == 0
            self.excess = len(data) > len(taken)

    def _feed_chunks(self, parser: httptools.HttpResponseParser, data: bytes | memoryview) -> None:
        before = len(self.body)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._events.complete:
                raise _protocol_error("The upstream sent a malformed chunk.") from error
            self.excess = True
        # the last five bytes, also when they came in several reads
        self._tail = bytes(data[-5:]) if len(data) >= 5 else (self._tail + data)[-5:]
        # of a part of a size line no more than its CR was seen
        self._between_chunks = not (self._events.open_chunks or self._events.complete) and self._tail[-1:] == b"\n"
        if self._events.complete:
            # The parser skips line ends behind a response without a word. The end proper is CR LF CR LF behind
            # something else, so further line ends show in the fifth byte from the end.
            self.excess |= self._tail[:1] in {b"\r", b"\n"}
            self.complete = True
            self._parser = None
        elif len(self.body) > before:
            self._framing_bytes = 0
        else:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_FRAMING_BYTES:
                raise _protocol_error("The upstream sent chunk extensions or trailers that are too large.")


def _protocol_error(message: str) -> ProxyError:
    return ProxyError(UPSTREAM_PROTOCOL_ERROR, message)
