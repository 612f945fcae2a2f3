"""A client on a raw socket that reads only when told to, and leaves exactly as told: FIN, RST or half-closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from typing import Any

from tests.fakes.raw_upstream import RawPeer
from tests.fakes.running import KEY


class RawClient(RawPeer):
    """The client's side of one connection, over TCP or TLS."""

    @classmethod
    async def connect(
        cls, port: int, tls: ssl.SSLContext | None = None, receive_buffer_bytes: int | None = None
    ) -> RawClient:
        """Connect; a small receive buffer makes back-pressure reach the proxy early."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        client = cls(sock, None)
        if tls is not None:
            client.tls = tls.wrap_bio(client._incoming, client._outgoing, server_hostname="localhost")
            await client.handshake()
        return client

    async def post(self, path: str, body: bytes | dict[str, Any], *headers: str) -> None:
        """Send a request with its body; JSON unless `headers` say otherwise."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        await self.begin(path, f"Content-Length: {len(body)}", *headers)
        await self.send(body)

    async def begin(self, path: str, *headers: str) -> None:
        """Send the head of a POST; `headers` say how its body is framed."""
        lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *headers, "", "")
        await self.send("\r\n".join(lines).encode())

    async def recv_some(self, limit_bytes: int) -> int:
        """Take at most so many bytes off the wire, whatever they say; how many there were."""
        return len(await asyncio.get_running_loop().sock_recv(self.sock, limit_bytes))

    async def recv_until(self, mark: bytes) -> bytes:
        """Read up to `mark`, and what came with it."""
        data = b""
        while mark not in data:
            data += await self._some()
        return data

    async def bye(self) -> None:
        """Send close_notify, then FIN, whatever of the answer is unread."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLError):  # the peer's own close_notify is not here yet
            self.tls.unwrap()
        await self._flush()
        self.close()

    async def leave(self, how: str) -> None:
        """`close` says goodbye as the protocol wants, `reset` does not, `half_close` goes on listening."""
        if how == "reset":
            self.reset()
        elif how == "half_close":
            self.sock.shutdown(socket.SHUT_WR)
        elif self.tls is not None:
            await self.bye()
        else:
            self.close()
