"""The whole way: a client, the proxy, and an upstream whose every byte on the wire the test decides."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.fakes.client import RecordingClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import running, upstream_config
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from tests.fakes.client import Answer
    from tests.fakes.raw_upstream import RawPeer
    from tests.fakes.running import Running

LAST_CHUNK: Final = b"0\r\n\r\n"
CHAT_REQUEST: Final = b'{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
JSON_TYPE: Final = ("Content-Type", "application/json")
PATIENCE_S: Final = LONG_S


def head(
    status: str = "200 OK",
    content_type: str | None = "text/event-stream; charset=utf-8",
    *lines: str,
    chunked: bool = True,
) -> bytes:
    """A response head whose connection is not used again, so that each exchange has a peer of its own."""
    fields = [f"HTTP/1.1 {status}", "Connection: close", *lines]
    if content_type is not None:
        fields.append(f"Content-Type: {content_type}")
    if chunked:
        fields.append("Transfer-Encoding: chunked")
    return ("\r\n".join(fields) + "\r\n\r\n").encode()


def chunk(data: bytes) -> bytes:
    """One chunk frame."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Line:
    """One client connection through a proxy to a scripted upstream."""

    upstream: RawUpstream
    proxy: Running
    client: RecordingClient
    peer_request: bytes = b""  # the last that `open` read

    async def open(
        self,
        path: str = "/v1/chat/completions",
        body: bytes | None = CHAT_REQUEST,
        *,
        method: str = "POST",
        headers: tuple[tuple[str, str], ...] = (JSON_TYPE,),
        **how: Any,
    ) -> RawPeer:
        """Send a request; the upstream's side of it, with the request read into `peer_request`."""
        self.client.send(method, path, body, headers=headers, **how)
        peer = await self.accept()
        self.peer_request = await asyncio.wait_for(peer.request(), PATIENCE_S)
        return peer

    async def accept(self) -> RawPeer:
        """The upstream's side of the proxy's next connection."""
        return await asyncio.wait_for(self.upstream.accept(), PATIENCE_S)

    async def answered(self, pieces: Iterable[bytes], *args: Any, close: bool = True, **how: Any) -> Answer:
        """Ask, let the upstream send `pieces`, each given a turn of the loop to arrive alone; then close its side."""
        peer = await self.open(*args, **how)
        with contextlib.suppress(ConnectionError):  # a proxy that has seen enough hangs up
            for piece in pieces:
                await peer.send(piece)
                await asyncio.sleep(0)
        if close:
            peer.close()
        return await self.answer(is_head=how.get("method") == "HEAD")

    async def answer(self, *, is_head: bool = False) -> Answer:
        """The client's next answer."""
        return await asyncio.wait_for(self.client.answer(is_head=is_head), PATIENCE_S)

    async def begun(self, *args: Any, **how: Any) -> tuple[RawPeer, Answer]:
        """Ask for a stream and let the upstream's head through: both sides stand at the start of the body."""
        peer = await self.open(*args, **how)
        await peer.send(head())
        return peer, await asyncio.wait_for(self.client.head(), PATIENCE_S)

    async def piece(self, answer: Answer) -> bytes:
        """The next chunk that the client gets."""
        return await asyncio.wait_for(self.client.piece(answer), PATIENCE_S)


@contextlib.asynccontextmanager
async def line(*, upstream: Mapping[str, Any] | None = None, **settings: Any) -> AsyncIterator[Line]:
    """A line with `upstream` settings for the upstream `up` and `settings` as `running` takes them."""
    with RawUpstream() as raw:
        url = f"http://127.0.0.1:{raw.port}/v1"
        config = upstream_config(url, **{"usage": "as-asked", **(upstream or {})})
        async with running({"up": config}, **settings) as proxy:
            client = await RecordingClient.connect(proxy.port)
            try:
                yield Line(raw, proxy, client)
            finally:
                await client.close()
