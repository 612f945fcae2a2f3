"""An upstream that answers every request at once with what the test chose, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT_JSON = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    }
).encode()
CHAT_EVENTS = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def response(body: bytes, *, status: int = 200, content_type: str = "application/json", extra: str = "") -> bytes:
    """A whole answer, framed by its length."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chat(request: bytes) -> bytes:
    """A chat answer, streamed where the request asks for it."""
    if b'"stream":true' in request.replace(b" ", b""):
        return response(CHAT_EVENTS, content_type="text/event-stream")
    return response(CHAT_JSON)


class AnsweringUpstream:
    """Listens on loopback; a context manager. `requests` are raw: each as its own head framed it.

    `answer` makes an answer of a request; an empty one closes the connection without a word, as does one
    that says `Connection: close` after its last byte, however that is framed.
    """

    def __init__(self, answer: Callable[[bytes], bytes] = chat) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The base URL for a configuration."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self) -> list[Any]:
        """The JSON bodies it was sent."""
        return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in self.requests]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while answer := self.answer(await self._request(reader)):
                writer.write(answer)
                await writer.drain()
                if b"\r\nConnection: close\r\n" in answer:
                    break
        self._writers.discard(writer)
        writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.rstrip(b"\r\n").split(b"\r\n")[1:])
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        while headers.get(b"transfer-encoding") == b"chunked":
            size = int(await reader.readuntil(b"\r\n"), 16)
            body += (await reader.readexactly(size + 2))[:-2]
            if size == 0:
                break
        self.requests.append(head + body)
        return self.requests[-1]
