"""A small real CONNECT proxy: it opens the tunnel it is asked for and moves bytes, or refuses as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class ConnectProxy:
    """An async context manager. `heads` are the requests it saw; `refusal` is sent in place of a tunnel."""

    def __init__(self, *, greeting: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.greeting = greeting
        self.refusal: bytes | None = None
        self.heads: list[bytes] = []
        self.port = 0
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.refusal is not None:
            writer.write(self.refusal)
            writer.close()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        target_reader, target_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        self._writers.append(target_writer)
        writer.write(self.greeting)
        for source, sink in ((reader, target_writer), (target_reader, writer)):
            pump = asyncio.get_running_loop().create_task(self._move(source, sink))
            self._pumps.add(pump)

    async def _move(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
