"""Spans reach the collector as they are; one that is away, hangs or refuses costs a count and a line, never time."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.core.tracing import Span, TraceContext
from proxy.telemetry.tracing import MAX_WAITING_SPANS, OtlpSender, traces_url
from tests.fakes.collector import Collector
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = TraceContext(0xABC, 0x1, True, b"vendor=opaque,b=2")
SERVED = Span("POST /v1/embeddings", False, 0x1, 0xF, 10**18, 10**18 + 5_000, {"sluice.id": "sl_1"}, None, False)
ASKED = Span("embeddings m", True, 0x2, 0x1, 10**18 + 1, 10**18 + 4_000, {"server.port": 1}, 10**18 + 3_000, True)


class Log:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def warning(self, event: str) -> None:
        self.said.append(("warning", event))

    def info(self, event: str) -> None:
        self.said.append(("info", event))


class Sender:
    """A sender with what it told."""

    def __init__(self, endpoint: str, **settings: Any) -> None:
        self.log = Log()
        self.lost: list[int] = []
        settings = {"headers": {}, "resource": {"service.name": "edge"}, "delay_s": 0.02, **settings}
        self.sender = OtlpSender(endpoint, log=cast("Any", self.log), lost=self.lost.append, **settings)

    @classmethod
    async def to(cls, endpoint: str, **settings: Any) -> Sender:
        """Made in a thread, as a proxy does: it waits for its own to start."""
        return await asyncio.to_thread(cls, endpoint, **settings)

    async def close(self, patience_s: float = 5.0) -> int:
        return await asyncio.to_thread(self.sender.close, patience_s)


@pytest.fixture
def hanging() -> Iterator[str]:
    """A collector that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def absent() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_spans_arrive_as_they_are() -> None:
    async with Collector() as collector:
        traced = await Sender.to(collector.endpoint, headers={"X-Team": "hush"})
        traced.sender.send(CONTEXT, [SERVED, ASKED])
        assert await traced.close() == 0
        (served,), (asked,) = collector.served, collector.asked
        assert (served.trace_id, served.span_id, served.parent_id) == (f"{0xABC:032x}", f"{1:016x}", f"{15:016x}")
        assert (asked.trace_id, asked.span_id, asked.parent_id) == (f"{0xABC:032x}", f"{2:016x}", f"{1:016x}")
        assert (served.has_remote_parent, asked.has_remote_parent) == (True, False)
        assert (served.name, served.attributes, served.is_error) == (
            "POST /v1/embeddings",
            {"sluice.id": "sl_1"},
            False,
        )
        assert (asked.name, asked.attributes, asked.is_error) == ("embeddings m", {"server.port": 1}, True)
        assert (asked.start_ns, asked.end_ns) == (10**18 + 1, 10**18 + 4_000)
        assert (served.events, asked.events) == ([], [("first_byte", 10**18 + 3_000)])
        assert (served.state, asked.state) == ("vendor=opaque,b=2",) * 2
        assert served.resource["service.name"] == "edge"
        assert collector.heads[0].startswith("post /v1/traces http/1.1")
        assert "x-team: hush" in collector.heads[0]
        assert (traced.lost, traced.log.said) == ([], [])


async def test_a_state_that_no_vendor_wrote_is_not_exported() -> None:
    async with Collector() as collector:
        traced = await Sender.to(collector.endpoint)
        for state in (b"=", b"\xff\xfe", b"a" * 5_000, b"Bad Key=1", b",,,"):
            traced.sender.send(CONTEXT._replace(state=state), [SERVED])
        assert await traced.close() == 0
        assert [span.state for span in collector.spans] == [""] * 5


async def test_they_leave_without_waiting_for_the_end() -> None:
    async with Collector() as collector:
        traced = await Sender.to(collector.endpoint)
        for number in range(3):
            traced.sender.send(CONTEXT, [SERVED])
            await until(lambda n=number: len(collector.spans) == n + 1, "the span")  # type: ignore[misc]
        assert await traced.close() == 0


async def test_refusals_are_counted_each_and_logged_once_until_it_takes_spans_again() -> None:
    async with Collector(status=400) as collector:
        traced = await Sender.to(collector.endpoint)
        for number in range(3):
            traced.sender.send(CONTEXT, [SERVED, ASKED])
            await until(lambda n=number: sum(traced.lost) == 2 * (n + 1), "the loss")  # type: ignore[misc]
        assert traced.log.said == [("warning", "spans are lost: the collector of traces does not take them")]
        collector.status = 200
        traced.sender.send(CONTEXT, [SERVED, ASKED])
        await until(lambda: len(traced.log.said) == 2, "the second line")
        assert traced.log.said[1] == ("info", "the collector of traces takes spans again")
        assert await traced.close() == 0
        assert sum(traced.lost) == 6


async def test_what_finds_no_room_is_dropped_and_counted(hanging: str) -> None:
    traced = await Sender.to(hanging)
    began_s = time.perf_counter()
    for _ in range(2_000):
        traced.sender.send(CONTEXT, [SERVED, ASKED])
    assert time.perf_counter() - began_s < 8.0
    assert traced.sender.waiting == MAX_WAITING_SPANS
    assert sum(traced.lost) == 4_000 - MAX_WAITING_SPANS
    began_s = time.perf_counter()
    assert await traced.close(0.2) == MAX_WAITING_SPANS
    assert time.perf_counter() - began_s < 8.0


async def test_an_absent_collector_holds_up_no_end(absent: str) -> None:
    traced = await Sender.to(absent)
    traced.sender.send(CONTEXT, [SERVED, ASKED])
    began_s = time.perf_counter()
    await traced.close(0.2)
    assert time.perf_counter() - began_s < 8.0
    await until(lambda: traced.lost == [2], "the loss, counted when the pause before the next try was ended")
    assert traced.sender.waiting == 0


@pytest.mark.parametrize(
    "endpoint",
    ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces", "http://c:4318/v1/traces/"],
)
def test_an_endpoint_is_a_base_url_or_a_whole_one(endpoint: str) -> None:
    assert traces_url(endpoint) == "http://c:4318/v1/traces"
    assert traces_url("https://c/api/otlp") == "https://c/api/otlp/v1/traces"


STARTED = """
import asyncio, logging, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
import structlog
from proxy import process, serving, worker
from proxy.app import open_app
from proxy.config.file import load
from proxy.telemetry.metrics import Metrics

async def main():
    app = await open_app(load(Path(sys.argv[1]), {}), Metrics(CollectorRegistry()), structlog.get_logger())
    await app.close()

asyncio.run(main())
print(sorted({name.split(".")[0] for name in sys.modules} & {"opentelemetry", "google", "requests", "urllib3"}))
"""


@pytest.mark.parametrize(
    ("tracing", "imported"),
    [
        ("", "[]\n"),
        ("tracing: {endpoint: http://127.0.0.1:1}\n", "['google', 'opentelemetry', 'requests', 'urllib3']\n"),
    ],
    ids=["off", "on"],
)
def test_nothing_of_it_is_imported_where_it_is_off(tmp_path: Path, tracing: str, imported: str) -> None:
    file = tmp_path / "sluice.yaml"
    upstreams = "upstreams: {local: {base_url: http://127.0.0.1:1, auth: none}}\n"
    file.write_text(f"{upstreams}ledger: {{url: sqlite:///{tmp_path}/ledger.db}}\n{tracing}")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", STARTED, str(file)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=LONG_S)
    assert (ran.stdout, ran.returncode) == (imported, 0), ran.stderr
