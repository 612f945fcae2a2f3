"""Our loop over the requests of a connection: in turn, each to its end, and nothing of one left for the next."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from aiohttp import StreamReader, web, web_protocol
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD

from proxy.server import connection as module
from proxy.server import http
from proxy.server.request_body import RequestBody
from tests.fakes.client import RecordingClient
from tests.fakes.refusals import Row, assert_refused
from tests.fakes.serving import MUCH, pieces, request, serving
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from aiohttp.http import RawRequestMessage

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


async def test_what_is_used_of_aiohttp_is_there() -> None:
    """What has no public name may go with any version."""
    told = re.findall(r"`(_\w+)`", module.__doc__ or "")
    assert len(told) > 10
    missing = [name for name in told if not hasattr(web_protocol.RequestHandler, name) and name != "_ErrInfo"]
    assert missing == [], "aiohttp's connections have changed"
    assert hasattr(web_protocol, "_ErrInfo"), "aiohttp tells otherwise of what it cannot parse"
    assert hasattr(StreamReader, "_buffer"), "aiohttp holds bodies otherwise"
    assert hasattr(BaseProtocol, "_drain_helper"), "aiohttp waits otherwise for a slow client"
    assert hasattr(HttpRequestParser, "message_consumed"), "aiohttp's parser counts its requests otherwise"


async def test_requests_are_served_in_turn() -> None:
    async with serving() as (served, _, client):
        client.writer.write(request("/slow") + request("/b"))
        await until(lambda: served.paths == ["/slow"], "the first")
        client.writer.write(request("/c"))
        served.gate.set()
        assert [(await client.answer()).body for _ in range(3)] == [b"/slow", b"/b", b"/c"]
        client.writer.write(request("/d", "Connection: close"))
        assert (await client.answer()).body == b"/d"
        assert await client.reader.read() == b""


async def test_a_fault_is_answered_logged_without_its_words_and_ends_the_connection() -> None:
    async with serving() as (served, _, client):
        client.writer.write(request("/fault") + request("/b"))
        assert_refused(await client.answer(), Row(500, "internal_error", type="server_error"))
        assert await client.reader.read() == b""
        assert served.paths == ["/fault"]
        [(level, event, about)] = served.log.entries
        assert (level, event, about["fault"], about["client"]) == ("error", "handler fault", "ValueError", "127.0.0.1")
        assert "zq7marker" not in repr(about)


async def test_a_fault_on_head_has_no_body() -> None:
    async with serving() as (_, _, client):
        client.writer.write(request("/fault", method="HEAD"))
        answer = await client.answer(is_head=True)
        assert (answer.status, answer.header("connection")) == (500, "close")
        assert await client.reader.read() == b""


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that has begun a head; a request that takes longer is not idle."""
    monkeypatch.setattr(http, "_KEEPALIVE_S", 0.3)
    async with serving() as (served, server, client):
        client.writer.write(request("/slow"))
        await until(lambda: served.paths == ["/slow"], "the request")
        [connection] = server.connections
        await until(lambda: connection._keepalive_handle is None, "the time is over")
        served.gate.set()
        assert (await client.answer()).body == b"/slow"
        client.writer.write(b"GET /half")
        assert await client.reader.read() == b""
        assert served.paths == ["/slow"]


async def test_a_body_nobody_wants_is_read_over() -> None:
    async with serving() as (served, server, client):
        client.writer.write(request("/a", "Content-Length: 5", body=b"12"))
        assert (await client.answer()).body == b"/a"
        client.writer.write(b"345" + request("/b", "Content-Length: 3", body=b"678") + request("/c"))
        assert [(await client.answer()).body for _ in range(2)] == [b"/b", b"/c"]
        assert served.paths == ["/a", "/b", "/c"]
        [connection] = server.connections
        await until(lambda: connection._waiter is not None, "the connection idle")
        assert connection._content is EMPTY_PAYLOAD  # type: ignore[attr-defined]  # ours; it would hold the body


async def test_a_body_nobody_wants_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER_S", 0.05)
    async with serving() as (_, _, client):
        client.writer.write(request("/a", "Content-Length: 5", body=b"12"))
        assert (await client.answer()).body == b"/a"
        assert await client.reader.read() == b""


async def test_broken_framing_ends_its_reader_at_once_also_behind_another_request() -> None:
    async with serving() as (served, _, client):
        client.writer.write(request("/slow") + request("/read", "Transfer-Encoding: chunked", method="POST"))
        client.writer.write(b"1\r\nx\r\n")
        await until(lambda: served.paths == ["/slow"], "the first")
        client.writer.write(b"zz\r\n")
        await client.writer.drain()
        served.gate.set()
        assert (await client.answer()).body == b"/slow"
        assert (await client.answer()).status == 500  # the test's server does not tell its own fault better
        assert served.ended == ["ProxyError"]


async def test_what_is_not_http_is_told_so_even_who_goes_on_sending() -> None:
    """A close with bytes unread is a reset, and the answer goes with it."""
    async with serving() as (served, _, client):
        client.writer.write(b"POST /zq7marker HTTP/1.1\r\nHost x\r\n\r\n" + bytes(MUCH))
        await client.writer.drain()
        assert_refused(await client.answer(), Row(400))
        assert await client.reader.read() == b""
        assert served.paths == []


async def test_nothing_is_read_behind_a_request_to_upgrade() -> None:
    async with serving() as (served, _, client):
        client.writer.write(request("/a", "Connection: Upgrade", "Upgrade: websocket") + request("/b"))
        assert (await client.answer()).body == b"/a"
        assert await client.reader.read() == b""
        assert served.paths == ["/a"]


@pytest.mark.parametrize("path", ["/slow", "/read"])
async def test_a_client_that_leaves_ends_its_request(path: str) -> None:
    async with serving() as (served, server, client):
        client.writer.write(request(path, "Content-Length: 5", body=b"12"))
        await until(lambda: served.paths == [path], "the request")
        client.writer.transport.abort()
        await until(lambda: server.open_connections == 0, "the connection forgotten")
        assert served.ended in (["CancelledError"], ["ConnectionResetError"])


async def test_who_reads_a_body_beside_the_request_is_told_that_the_client_left() -> None:
    """As a change of the admin API does, which goes on when its client leaves."""
    read: list[asyncio.Task[bytes]] = []

    async def handler(asked: web.BaseRequest) -> web.Response:
        read.append(asyncio.get_running_loop().create_task(asked.content.readany()))
        await asyncio.Event().wait()
        return web.Response()

    async with serving() as (_, server, client):
        server.serve = http.with_aiohttp(handler)
        async with await RecordingClient.connect(client.writer.get_extra_info("peername")[1]) as other:
            other.writer.write(request("/", "Content-Length: 5"))
            await until(lambda: bool(read), "the reader")
            other.writer.transport.abort()
            with pytest.raises(ConnectionResetError):
                await read[0]


async def test_pages_of_aiohttp_are_served_and_refused() -> None:
    async def handler(asked: web.BaseRequest) -> web.Response:
        return web.Response(body=await asked.read())

    async with serving() as (_, server, client):
        server.serve = http.with_aiohttp(handler)
        async with await RecordingClient.connect(client.writer.get_extra_info("peername")[1]) as other:
            for body in (b"12345", b""):
                answer = await other.ask("POST", "/", body)
                assert (answer.status, answer.body) == (200, body)
            assert (await other.ask("POST", "/", bytes(1024**2 + 1))).status == 413


async def test_a_stop_ends_what_is_idle_and_what_is_not() -> None:
    async with serving() as (served, server, client):
        client.writer.write(request("/slow"))
        async with await RecordingClient.connect(client.writer.get_extra_info("peername")[1]) as idle:
            await until(lambda: served.paths == ["/slow"], "the request")
            await server.shutdown(0.05)
            assert await idle.reader.read() == await client.reader.read() == b""
        assert served.ended == ["CancelledError"]


@pytest.mark.parametrize("sent", [[b"x" * 10], [b"a", b"b" * 70_000, b"c"], [b"d" * 60_000, b"e" * 60_000], [b""]])
async def test_a_whole_body_is_what_its_pieces_are(sent: list[bytes]) -> None:
    """Taken out of aiohttp's buffer at once, or read in its way."""
    taken: list[bytes | None] = []
    for whole in (True, False):
        content = StreamReader(Still(asyncio.get_running_loop()), 65536, loop=asyncio.get_running_loop())
        [*map(content.feed_data, sent)]
        message = parsed(b"Content-Length: 7")
        body = RequestBody(Still(asyncio.get_running_loop()), message, content, 1.0)
        assert body.take_whole() is None, "not all of it is there"
        content.feed_eof()
        taken.append(body.take_whole() if whole else b"".join([piece async for piece in pieces(body)]))
        assert (body.received_bytes, await body.read()) == (len(b"".join(sent)), b"")
    assert taken == [b"".join(sent)] * 2


class Still(BaseProtocol):
    """A protocol without a transport or parser: nothing is to be paused."""

    def pause_reading(self) -> None:
        return None

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT002 - aiohttp's signature
        return None


def parsed(*headers: bytes) -> RawRequestMessage:
    parser = HttpRequestParser(Still(asyncio.get_running_loop()), asyncio.get_running_loop(), 65536)
    messages, _, _ = parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", b"Host: x", *headers, b"", b""]))
    message: RawRequestMessage = messages[0][0]
    return message
