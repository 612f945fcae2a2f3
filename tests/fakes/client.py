"""A recording client on a raw socket: it sees every byte, reads as slowly as it is told, and leaves as rudely."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl


@dataclass
class Answer:
    """An answer as it came: `body` without its framing; `whole` says that the framing ended as it should."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    whole: bool = False
    pieces: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


class RecordingClient:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @classmethod
    async def connect(
        cls, port: int, tls: ssl.SSLContext | None = None, receive_buffer: int | None = None
    ) -> RecordingClient:
        """Connect; a small `receive_buffer` (bytes) makes back-pressure show early."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=tls, server_hostname="localhost" if tls else None, limit=2**16
        )
        return cls(reader, writer)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        key: str | None = "sk-test-key-0123456789",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Write a request, with its Content-Length when there is a body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            lines.append("Content-Type: application/json")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in headers]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b""))

    async def head(self) -> Answer:
        """The head of the next answer, 1xx skipped."""
        while True:
            raw = await self.reader.readuntil(b"\r\n\r\n")
            first, *rest = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                pairs = [line.split(":", 1) for line in rest]
                return Answer(status, [(name, value.strip()) for name, value in pairs])

    async def piece(self, answer: Answer) -> bytes:
        """The next chunk of a chunked answer; b"" at its proper end. Raises `IncompleteReadError` where it was cut."""
        size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        answer.body += data
        if data:
            answer.pieces.append(data)
        else:
            answer.whole = True
        return data

    async def answer(self, *, is_head: bool = False) -> Answer:
        """The whole next answer, or as much of it as came before the connection ended."""
        answer = await self.head()
        if is_head or answer.status in (204, 304):
            answer.whole = True
            return answer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if answer.header("transfer-encoding") == "chunked":
                while await self.piece(answer):
                    pass
            elif (length := answer.header("content-length")) is not None:
                left = int(length)
                while left and (data := await self.reader.read(left)):
                    answer.body += data
                    left -= len(data)
                answer.whole = left == 0
            else:
                answer.body = await self.reader.read()
        return answer

    async def ask(self, method: str, path: str, body: bytes | dict[str, Any] | None = None, **how: Any) -> Answer:
        """Send a request and take its answer."""
        self.send(method, path, body, **how)
        return await self.answer(is_head=method == "HEAD")

    async def close(self) -> None:
        """Leave politely."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, ConnectionAbortedError):
            await self.writer.wait_closed()

    async def reset(self) -> None:
        """Leave with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)
