"""An upstream that streams, dies in one of several ways under load, and comes back on the same port."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from typing import Final, Self, cast

from tests.fakes.answering import response
from tests.fakes.line import LAST_CHUNK, chunk
from tests.fakes.recordings import DONE, FINISH, ROLE, delta

EVENTS: Final = (ROLE, delta("a"), delta("b"), delta("c"), FINISH + DONE)
WHOLE: Final = b"".join(EVENTS)
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ERROR: Final = b'{"error":{"message":"broken","type":"server_error","param":null,"code":null}}'
_PAUSE_S: Final = 0.2  # between two events, on average: a stream lasts four of them
_ANSWERS: Final = {
    "500": response(_ERROR, status=500),
    "429": response(_ERROR, status=429, extra="retry-after: 1\r\n"),
}


class MortalUpstream:
    """Streams `EVENTS` while `mode` is `well`. A context manager.

    Dead, it `refuses` or `resets` connections (and has reset those it had), or it ends what it has begun and `hangs` at
    what is new, or answers that with `500` or `429`. `streaming` counts the answers that have begun and not ended.
    """

    def __init__(self) -> None:
        self.mode = "well"
        self.pauses = random.Random(7)
        self._conversations: set[_Conversation] = set()
        # keeps the port while nobody listens: connecting to it is refused
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]

    @property
    def url(self) -> str:
        """The base URL for a configuration."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def streaming(self) -> int:
        """Streams under way."""
        return sum(conversation.is_streaming for conversation in self._conversations)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self._reserved.close()
        for conversation in list(self._conversations):
            conversation.reset()

    async def die(self, mode: str) -> None:
        """From now on it is dead in that way."""
        self.mode = mode
        if mode == "refuses":
            self._server.close()
        if mode in ("refuses", "resets"):
            for conversation in list(self._conversations):
                conversation.reset()

    async def revive(self) -> None:
        """From now on it works."""
        was, self.mode = self.mode, "well"
        if was == "refuses":
            await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        sock = _bound(self.port)
        self._server = await loop.create_server(lambda: _Conversation(self), sock=sock, backlog=1024)


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class _Conversation(asyncio.Protocol):
    """One connection of the proxy's."""

    _transport: asyncio.Transport

    def __init__(self, upstream: MortalUpstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self.is_streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._upstream._conversations.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._upstream._conversations.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")), b": 0")
        if mark and len(body) == int(length.partition(b": ")[2]):
            self._received = b""
            self._answer(self._upstream.mode)

    def _answer(self, mode: str) -> None:
        if mode == "well":
            self._transport.write(_HEAD)
            self.is_streaming = True
            self._stream(list(EVENTS))
        elif mode == "resets":
            self.reset()
        elif mode in _ANSWERS:
            self._transport.write(_ANSWERS[mode])

    def _stream(self, events: list[bytes]) -> None:
        self._transport.write(chunk(events.pop(0)))
        if events:
            pause_s = _PAUSE_S * self._upstream.pauses.uniform(0.5, 1.5)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._stream, events)
        else:
            self._transport.write(LAST_CHUNK)
            self.is_streaming = False

    def reset(self) -> None:
        """RST."""
        self._stop()
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.is_streaming = False
