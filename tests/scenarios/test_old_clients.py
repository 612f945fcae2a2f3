"""HTTP/1.0 clients: a body without a length ends with the connection, and only with a whole body."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.line import CHAT_REQUEST, LAST_CHUNK, PATIENCE_S, chunk, head, line
from tests.fakes.running import KEY

FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def old_request(path: str, body: bytes, *lines: str) -> bytes:
    fields = [f"POST {path} HTTP/1.0", f"Authorization: Bearer {KEY}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*fields, "Content-Type: application/json", "", ""]).encode() + body


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_a_stream_to_an_old_client_ends_with_the_connection(*, keep_alive: bool) -> None:
    """Even to one that asks for keep-alive, such as ApacheBench: nothing else tells it the end."""
    async with line() as way:
        lines = ["Connection: keep-alive"] if keep_alive else []
        way.client.writer.write(old_request("/v1/chat/completions", CHAT_REQUEST, *lines))
        peer = await way.accept()
        await peer.request()
        await peer.send(head() + chunk(FINISH) + LAST_CHUNK)
        received = await asyncio.wait_for(way.client.reader.read(), PATIENCE_S)
    assert received.startswith(b"HTTP/1.0 200 ")
    assert received.endswith(b"\r\n\r\n" + FINISH)
    assert b"transfer-encoding" not in received.lower()


async def test_a_body_that_breaks_off_does_not_look_whole_to_an_old_client() -> None:
    """Promise 5: where a close is the end, a failure must be a reset."""
    async with line() as way:
        way.client.writer.write(old_request("/v1/audio/speech", b'{"model":"m","input":"x"}'))
        peer = await way.accept()
        await peer.request()
        await peer.send(head("200 OK", "audio/mpeg") + chunk(b"abc"))
        await asyncio.wait_for(way.client.reader.readuntil(b"abc"), PATIENCE_S)
        peer.close()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(way.client.reader.read(), PATIENCE_S)


async def test_an_old_client_gets_no_100_continue() -> None:
    """RFC 9110 section 10.1.1: an expectation in an HTTP/1.0 request is ignored."""
    async with line() as way:
        way.client.writer.write(old_request("/v1/chat/completions", CHAT_REQUEST, "Expect: 100-continue"))
        peer = await way.accept()
        await peer.request()
        await peer.send(head() + chunk(FINISH) + LAST_CHUNK)
        received = await asyncio.wait_for(way.client.reader.read(), PATIENCE_S)
    assert received.startswith(b"HTTP/1.0 200 ")
