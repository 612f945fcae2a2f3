"""An upstream on a raw socket: the test decides every byte on the wire, and how the connection ends.

TLS runs on memory buffers over the same socket, so that a test can also end it with or without close_notify.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import Self


class RawPeer:
    """The upstream's side of one connection."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = None if tls is None else tls.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        assert self.tls is not None
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._more():
                    raise ConnectionError("the handshake broke off") from None
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        if self.tls is None:
            await self._loop.sock_sendall(self.sock, data)
        else:
            self.tls.write(data)
            await self._flush()

    async def recv(self) -> bytes:
        """Some bytes, b"" at the end."""
        while True:
            if self.tls is None:
                return await self._loop.sock_recv(self.sock, 65536)
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                if not await self._more():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    async def request(self) -> bytes:
        """One request: its head, and its body as Content-Length or chunks frame it."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._some()
        head, _, body = data.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(headers.get(b"content-length", b"0"))
        chunked = b"transfer-encoding" in headers
        while len(body) < length or (chunked and not body.endswith(b"0\r\n\r\n")):
            body += await self._some()
        return head + b"\r\n\r\n" + body

    async def answer(self, response: bytes) -> bytes:
        """Read a request, send the bytes. Returns the request."""
        request = await self.request()
        await self.send(response)
        return request

    async def ended(self) -> None:
        """Wait until the other side closed or reset the connection."""
        try:
            while await self.recv():
                continue
        except (ConnectionError, ssl.SSLError):
            return

    async def recv_raw(self) -> bytes:
        """Some bytes as they are on the wire, b"" at the end."""
        return await self._loop.sock_recv(self.sock, 65536)

    async def ended_raw(self) -> None:
        """Wait for the end of the TCP connection, whatever TLS says of it."""
        try:
            while await self.recv_raw():
                continue
        except ConnectionError:
            return

    async def bye(self) -> None:
        """Send close_notify, then FIN."""
        assert self.tls is not None
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            await self._flush()
        self.close()

    def close(self) -> None:
        """FIN; over TLS without close_notify."""
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def _some(self) -> bytes:
        data = await self.recv()
        if not data:
            raise ConnectionError("the request broke off")
        return data

    async def _more(self) -> bool:
        data = await self._loop.sock_recv(self.sock, 65536)
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._loop.sock_sendall(self.sock, data)


class RawUpstream:
    """Listens on loopback; `accept` gives the next connection, its handshake done. A context manager."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((host, 0))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.peers: list[RawPeer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()
        for peer in self.peers:
            peer.close()

    async def accept_raw(self) -> RawPeer:
        """The next connection, without a handshake."""
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = RawPeer(sock, self._tls)
        self.peers.append(peer)
        return peer

    async def accept(self) -> RawPeer:
        peer = await self.accept_raw()
        if self._tls is not None:
            await peer.handshake()
        return peer


class FullListener:
    """A listener whose queue is full, so that connecting to it gets no answer at all. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._fillers = [socket.socket() for _ in range(3)]
        for filler in self._fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (*self._fillers, self._listener):
            sock.close()
