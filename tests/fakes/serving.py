"""A server's connections by themselves: what they serve is the test's."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from proxy.server import http
from proxy.server.request_body import RequestBody
from tests.fakes.client import RecordingClient
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import StreamReader
    from aiohttp.http import RawRequestMessage

    from proxy.server.connection import Connection

PATIENCE_S = LONG_S
MUCH = 1 << 24  # more than a client's kernel and the server's hold
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


class Log:
    """What was logged: the event and who it happened to."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **about: self.entries.append((level, event, about))


class Served:
    """A server that answers with each request's path, as `steps` lets it; bodies are read only where it says so."""

    def __init__(self) -> None:
        self.log = Log()
        self.paths: list[str] = []
        self.ended: list[str] = []
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()

    async def serve(self, connection: Connection, message: RawRequestMessage, content: StreamReader) -> bool:
        self.paths.append(message.path)
        try:
            await self._serve(connection, message, content)
        except BaseException as end:
            self.ended.append(type(end).__name__)
            raise
        return not message.should_close and not message.upgrade

    async def _serve(self, connection: Connection, message: RawRequestMessage, content: StreamReader) -> None:
        if message.path == "/fault":
            raise ValueError("zq7marker")
        if message.path == "/slow":
            await self.gate.wait()
        if message.path == "/early":  # an upload that is told to stop, as the answer does not need the rest
            upload = asyncio.ensure_future(content.readany())
            await asyncio.sleep(0)
            upload.cancel()
        if message.path == "/much" and connection.transport is not None:
            connection.transport.write(ANSWER % (MUCH, bytes(MUCH)))
            await self.gate.wait()
        if message.path == "/read":
            body = RequestBody(connection, message, content, 60.0)
            self.bodies.append(body.take_whole() or b"".join([piece async for piece in pieces(body)]))
        if connection.transport is None:
            raise ConnectionResetError
        connection.transport.write(ANSWER % (len(message.path), message.path.encode()))


async def pieces(body: RequestBody) -> AsyncIterator[bytes]:
    while piece := await body.read():
        yield piece


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Served, http.Server, RecordingClient]]:
    served = Served()
    server = http.server(served.serve, max_connections=10, log=served.log)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with listening, asyncio.timeout(PATIENCE_S):
        async with await RecordingClient.connect(listening.sockets[0].getsockname()[1]) as client:
            yield served, server, client
        listening.close()
        await server.shutdown(0.1)


def request(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body
