"""What one connection may hold, and for how long: behind a request, behind an answer, behind what is no request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.fakes.serving import MUCH, request, serving
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from proxy.server import http

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

CHUNKED = ("Transfer-Encoding: chunked",)


def only(server: http.Server) -> Any:
    [connection] = server.connections
    return connection


async def test_no_more_than_a_few_requests_wait_however_many_are_sent() -> None:
    """Each has a head of up to 2 MiB. The rest comes when there is room, and all are answered in turn."""
    async with serving() as (served, server, client):
        client.writer.write(request("/slow"))
        await until(lambda: served.paths == ["/slow"], "the first")
        connection = only(server)
        for waiting, is_full in ((1, False), (2, True)):
            client.writer.write(request(f"/{waiting}"))
            await until(lambda waiting=waiting: len(connection._messages) == waiting, "it waits")  # type: ignore[misc]
            assert connection._buffer_paused is is_full
        paths = [f"/{number}" for number in range(3, 103)]
        client.writer.write(b"".join(map(request, paths)))
        served.gate.set()
        answers = [(await client.answer()).body.decode() for _ in range(103)]
        assert answers == ["/slow", "/1", "/2", *paths]


async def test_what_is_no_http_is_kept_once_and_without_its_words() -> None:
    async with serving() as (served, server, client):
        client.writer.write(request("/slow"))
        await until(lambda: served.paths == ["/slow"], "the first")
        connection = only(server)
        client.writer.write(b"\0zq7marker" * 10_000)
        await until(lambda: len(connection._messages) > 0, "the error")
        for _ in range(3):
            connection.data_received(b"\0zq7marker" * 10_000)
        [(error, _)] = connection._messages
        assert "zq7marker" not in repr(error) + str(error.exc)
        assert error.exc.__traceback__ is None, "its frames hold what was read"
        served.gate.set()
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]
        assert await client.reader.read() == b""


@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_that_comes_in_pieces_is_refused_above_64_kib(before: int) -> None:
    """The parser bounds lines and their number, which together are 2 MiB, of whoever connects."""
    async with serving() as (served, server, client):
        for _ in range(before):
            client.writer.write(request("/a", "Content-Length: 3", method="POST", body=b"abc"))
            assert (await client.answer()).status == 200
        connection = only(server)
        client.writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n")
        for number in range(1, 9):
            client.writer.write(b"X-%d: %b\r\n" % (number, b"a" * 8000))
            await until(lambda number=number: connection._head_bytes > 8000 * number, "it came")  # type: ignore[misc]
        client.writer.write(b"X-9: %b\r\n" % (b"a" * 8000))
        assert (await client.answer()).status == 400
        assert await client.reader.read() == b""
        assert served.paths == ["/a"] * before


async def test_a_parser_that_stops_late_is_given_the_rest() -> None:
    """Too many chunks came, the last with the end of a read: the parser stops at the next, when all is read already."""
    async with serving() as (served, server, client):
        client.writer.write(request("/read", *CHUNKED, method="POST", body=b"1\r\na\r\n" * 4097))
        await until(lambda: served.paths == ["/read"], "the request")
        content = only(server)._content
        await until(lambda: content.total_bytes == 4097 and not content._buffer, "all of it read")
        client.writer.write(b"1\r\nb\r\n0\r\n\r\n" + request("/b"))
        assert [(await client.answer()).body for _ in range(2)] == [b"/read", b"/b"]
        assert served.bodies == [b"a" * 4097 + b"b"]


async def test_an_upload_that_is_answered_early_is_read_over_too() -> None:
    """Else the close is a reset, and the client may never read why its upload was not wanted."""
    async with serving() as (served, _, client):
        client.writer.write(request("/early", "Content-Length: 5", method="POST"))
        assert (await client.answer()).body == b"/early"
        client.writer.write(b"12345" + request("/b"))
        assert (await client.answer()).body == b"/b"
        assert served.paths == ["/early", "/b"]


async def test_a_stop_lets_go_of_a_client_that_reads_nothing() -> None:
    """An answer that waits to be sent would hold the connection as long as that client likes."""
    async with serving() as (served, server, client):
        cast("asyncio.Transport", client.writer.transport).pause_reading()
        client.writer.write(request("/much"))
        await until(lambda: served.paths == ["/much"], "the request")
        transport = only(server).transport
        await until(lambda: transport.get_write_buffer_size() > 0, "the answer waits")
        await server.shutdown(0.05)
        cast("asyncio.Transport", client.writer.transport).resume_reading()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(MUCH)
