"""The framing of one HTTP/1.1 response: bytes in, its head and its body out; no I/O.

Strict where leniency lets two parties disagree about where a response ends (RFC 9112 sections 6, 7 and 11.2): whatever
is ambiguous is an error, and whatever follows a response is reported, so that nothing can pass for the next one.
httptools checks the syntax of heads and chunks; where the head ends and how the body is framed is decided here, because
httptools tells neither how far it read nor what it skipped.
"""

from __future__ import annotations

import re
from typing import Final

import httptools
import msgspec

from proxy.core.discreet import as_repr
from proxy.core.errors import UPSTREAM_PROTOCOL_ERROR, ProxyError
from proxy.upstream.parser_events import ChunkEvents, HeadEvents
from proxy.upstream.usual_head import usual_head

MAX_HEAD_BYTES: Final = 64 * 1024  # all of a head; servers and proxies send at most a few KiB
MAX_HEADER_LINES: Final = 256
MAX_INTERIM_HEADS: Final = 16  # 1xx before the final head
MAX_FRAMING_BYTES: Final = 64 * 1024  # chunk extensions and trailers, which are dropped, between two body bytes

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_STATUS_LINE_START: Final = b"HTTP/1."
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_WHOLE_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,6})\r\n(.+)\r\n", re.DOTALL)
_CHUNKED_HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"  # before the parser may read chunks
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*([0-9]{1,9})(?:$|[,;\s])", re.IGNORECASE)
_FRAMING_HEADERS: Final = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """A final response head. `headers` are as received: in order, with their case and their duplicates.

    `content_length` is what they say of it, whether or not there is a body.
    """

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    content_length: int | None = None

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status}>"  # cookies may be among the headers

    __rich_repr__ = as_repr


class ResponseReader(msgspec.Struct, eq=False, gc=False):
    """Reads one response. `feed` what arrives and `end` when the peer closes; `take` the body.

    Both raise a `ProxyError` of kind UPSTREAM_PROTOCOL_ERROR; body bytes from before the fault can still be taken.
    """

    bodiless: bool = False  # whatever its head says, the response has no body (it answers HEAD or CONNECT)
    head: ResponseHead | None = None
    body: bytearray = msgspec.field(default_factory=bytearray)  # received, not yet taken
    received_bytes: int = 0  # of body in all, framing excluded
    started: bool = False  # any byte arrived
    complete: bool = False  # the framing says that the response is whole
    excess: bool = False  # bytes followed the response
    close_delimited: bool = False
    between_chunks: bool = False  # of a chunked body: the size of the next chunk comes next, and none of it was seen
    keep_alive_s: int | None = None  # how long the upstream says it keeps the idle connection, in seconds
    _keep_alive: bool = False
    _partial_head: bytes = b""
    _interim_heads: int = 0
    _events: ChunkEvents | None = None  # of a chunked body, and its parser: both once they are needed
    _parser: httptools.HttpResponseParser | None = None
    _remaining_bytes: int = 0  # of a body with Content-Length
    _is_chunked: bool = False
    _framing_bytes: int = 0
    _tail: bytes = b""

    def __repr__(self) -> str:
        return f"<ResponseReader {self.head}, {self.received_bytes} bytes>"

    __rich_repr__ = as_repr

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
        if not self.between_chunks or (chunk := _WHOLE_CHUNK.fullmatch(data)) is None:
            return b""
        digits, body = chunk.groups()
        if int(digits, 16) != len(body):
            return b""
        self.passed_chunks(len(body))
        return body

    def passed_chunks(self, body_bytes: int) -> None:
        """Chunks went past the reader, whole ones between two reads, with so much body in all."""
        self.received_bytes += body_bytes
        self._framing_bytes = 0

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
        if not self._partial_head and not self.bodiless and (usual := usual_head(bytes(data))) is not None:
            return self._begin_usual(*usual)
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

    def _begin_usual(self, reason: bytes, headers: list[tuple[bytes, bytes]], length: int | None, rest: bytes) -> bytes:
        """Take over what `usual_head` found, and the body if it came whole. Return what is left to read."""
        self.head = ResponseHead(200, reason, headers, length)
        self._keep_alive = True
        if length is None:
            self._is_chunked = self.between_chunks = True
        elif length == len(rest):
            self.body += rest
            self.received_bytes = length
            self.complete = True
            return b""
        else:
            self._remaining_bytes = length
            self.complete = length == 0
        return rest

    def _read_head(self, text: bytes) -> None:
        line = _STATUS_LINE.match(text)
        if line is None:
            raise _protocol_error("The upstream does not speak HTTP/1.x.")
        if len(text) > MAX_HEAD_BYTES or text.count(b"\n") > MAX_HEADER_LINES + 2:
            raise _protocol_error("The upstream sent a response head that is too large.")
        status = int(line[2])
        if status == 101:  # never asked for; what follows would not be HTTP (RFC 9110 section 15.2.2)
            raise _protocol_error("The upstream switched protocols unasked.")
        events = HeadEvents()
        try:
            httptools.HttpResponseParser(events).feed_data(text)
        except httptools.HttpParserError as error:
            raise _protocol_error("The upstream sent a malformed response head.") from error
        if status < 200:
            self._interim_heads += 1
            if self._interim_heads > MAX_INTERIM_HEADS:
                raise _protocol_error("The upstream sent too many interim responses.")
            return
        content_length = self._decide_framing(status, events.headers, http_1_1=line[1] == b"1")
        self.head = ResponseHead(status, line[3] or b"", events.headers, content_length)

    def _decide_framing(self, status: int, headers: list[tuple[bytes, bytes]], *, http_1_1: bool) -> int | None:
        """RFC 9112 section 6.3, without its leniencies. Return the Content-Length."""
        lengths, encodings = [], []
        self._keep_alive = http_1_1  # HTTP/1.0 keep-alive would have to be asked for
        for name, value in headers:
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
        length = int(lengths[0]) if lengths else None
        if self.bodiless or status in {204, 304}:
            self.complete = True
        elif encodings:
            self._is_chunked = self.between_chunks = True
        elif length is not None:
            self._remaining_bytes = length
            self.complete = length == 0
        else:
            self.close_delimited = True
        return length

    def _feed_body(self, data: bytes | memoryview) -> None:
        if self._is_chunked:
            self._feed_chunks(data)
        elif self.close_delimited:
            self.body += data
        else:
            taken = data[: self._remaining_bytes]
            self.body += taken
            self._remaining_bytes -= len(taken)
            self.complete = self._remaining_bytes == 0
            self.excess = len(data) > len(taken)

    def _feed_chunks(self, data: bytes | memoryview) -> None:
        events, parser = self._events, self._parser
        if events is None or parser is None:
            events = self._events = ChunkEvents(self.body)
            parser = self._parser = httptools.HttpResponseParser(events)
            parser.feed_data(_CHUNKED_HEAD)
        before = len(self.body)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not events.complete:
                raise _protocol_error("The upstream sent a malformed chunk.") from error
            self.excess = True
        # the last five bytes, also when they came in several reads
        self._tail = bytes(data[-5:]) if len(data) >= 5 else (self._tail + data)[-5:]
        # of a part of a size line no more than its CR was seen
        self.between_chunks = not (events.open_chunks or events.complete) and self._tail[-1:] == b"\n"
        if events.complete:
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
