"""Promise 4 holds for answers that are Sluice's own: a client that asks on and on and reads nothing is cut."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import pytest

from tests.fakes.client import RecordingClient
from tests.fakes.line import JSON_TYPE, chunk, head, line
from tests.fakes.waiting import LONG_S, until

STALL_S: Final = 0.3
MANY: Final = 20_000


@pytest.mark.parametrize(
    ("request_text", "leaves_a_line"),
    [
        ("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", True),
        ("OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\n\r\n", False),
    ],
    ids=["refusals", "preflights"],
)
async def test_a_client_that_never_reads_its_answers_is_cut(*, request_text: str, leaves_a_line: bool) -> None:
    """No key is needed to ask; the last answer that fits nowhere must not hold the connection for ever."""
    async with line(server={"write_stall": STALL_S, "cors_origins": ("*",)}) as way:
        asking = await RecordingClient.connect(way.proxy.port, receive_buffer=4096)

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(MANY // 100):
                    asking.writer.write(request_text.encode() * 100)
                    await asking.writer.drain()

        flooding = asyncio.get_running_loop().create_task(flood())
        server = way.proxy.worker._http[0]
        await until(lambda: server.open_connections == 1, "the client cut")  # the other is the line's own
        await asyncio.wait_for(flooding, LONG_S)
        asking.writer.transport.abort()
        if leaves_a_line:
            await until(lambda: way.proxy.exchanges[-1:] and way.proxy.exchanges[-1]["status"] == 499, "its line")
            assert way.proxy.exchanges[-1]["outcome"] == "client_stalled"
            assert way.proxy.exchanges[-1]["aborted_by"] == "write_stall"
        assert len(way.proxy.worker.app.live) == 0


async def test_a_stall_on_a_body_without_events_is_the_clients_fault() -> None:
    """The upstream is ended by us, and neither it nor Sluice is blamed."""
    async with line(server={"write_stall": STALL_S}) as way:
        stuck = await RecordingClient.connect(way.proxy.port, receive_buffer=4096)
        stuck.send("POST", "/v1/audio/speech", b'{"model":"m","input":"x"}', headers=(JSON_TYPE,))
        peer = await way.accept()
        await peer.request()
        await peer.send(head("200 OK", "audio/mpeg"))
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.send(chunk(b"\0" * 65536))
        logged = await way.proxy.exchange()
        stuck.writer.transport.abort()
    assert (logged["status"], logged["outcome"], logged["aborted_by"]) == (499, "client_stalled", "write_stall")
    assert logged["blame"] == "downstream"
