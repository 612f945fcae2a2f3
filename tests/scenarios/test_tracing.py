"""Traces of whole exchanges: a client, the proxy, upstreams, and a real collector that says what it got."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig, RetriesConfig, TracingConfig
from proxy.config.upstreams import RouteConfig
from proxy.config.values import Secret
from tests.fakes.answering import CHAT_EVENTS, AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.collector import Collector
from tests.fakes.line import chunk, line
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import KEY, running, upstream_config

if TYPE_CHECKING:
    from tests.fakes.collector import Exported

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}\n\n'
STREAM = CHAT_EVENTS.replace(b"data: [DONE]", USAGE + b"data: [DONE]")
DELTA = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'


def traced(collector: Collector, **settings: Any) -> dict[str, Any]:
    return {"tracing": TracingConfig(endpoint=collector.endpoint, **settings)}


def parents(request: bytes) -> list[tuple[str, str, str]]:
    """Trace, span and flags of each `traceparent` that an upstream got."""
    found = re.findall(r"(?im)^traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\r$", request.decode())
    return [(trace, span, flags) for trace, span, flags in found]


def lies_within(inner: Exported, outer: Exported) -> bool:
    return outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


async def test_a_streamed_chat_is_a_child_of_the_clients_span_and_the_upstreams_parent() -> None:
    async with (
        Collector() as collector,
        AnsweringUpstream(lambda _: response(STREAM, content_type="text/event-stream")) as up,
    ):
        before_ns = time.time_ns()
        async with running(up.url, settings=traced(collector, service_name="edge")) as proxy:
            async with await RecordingClient.connect(proxy.port) as client:
                headers = (PARENT, ("tracestate", "a=1"), ("tracestate", "b=2"))
                answer = await client.ask("POST", f"{CHAT}?token=q", {**BODY, "stream": True}, headers=headers)
                assert (answer.status, answer.body) == (200, CHAT_EVENTS)
            written = await proxy.exchange()
            port = proxy.worker.app.upstreams["up"].pool.origin.port
        (served,), (asked,) = collector.served, collector.asked
        assert (served.trace_id, served.parent_id, served.has_remote_parent) == (TRACE, SPAN, True)
        assert (asked.trace_id, asked.parent_id, asked.has_remote_parent) == (TRACE, served.span_id, False)
        assert parents(up.requests[0]) == [(TRACE, asked.span_id, "01")]
        assert b"\r\ntracestate: a=1,b=2\r\n" in up.requests[0]
        assert served.name == "POST /v1/chat/completions"
        assert served.attributes == {
            "http.request.method": "POST",
            "http.route": CHAT,
            "url.path": CHAT,
            "url.scheme": "http",
            "http.response.status_code": 200,
            "sluice.id": written["id"],
            "sluice.key_id": "team-a",
            "sluice.model": "*",
            "sluice.phase": "relay",
        }
        assert asked.name == "chat m"
        assert asked.attributes == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "up",
            "gen_ai.request.model": "m",
            "gen_ai.request.stream": True,
            "gen_ai.usage.input_tokens": 9,
            "gen_ai.usage.output_tokens": 3,
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
            "server.port": port,
            "sluice.grade": "exact",
            "sluice.upstream": "up",
        }
        assert lies_within(asked, served)
        assert before_ns <= served.start_ns <= served.end_ns <= time.time_ns()
        assert abs((served.end_ns - served.start_ns) / 1e9 - written["duration_s"]) < 0.5
        (event, first_ns), (head, head_ns) = served.events[0], asked.events[0]
        assert (event, head) == ("first_byte", "first_byte")
        assert asked.start_ns < head_ns <= first_ns <= served.end_ns
        assert not served.is_error
        assert not asked.is_error
        assert (written["trace_id"], served.resource["service.name"]) == (TRACE, "edge")


async def test_each_try_is_a_span_and_the_parent_of_what_its_upstream_did() -> None:
    async with (
        Collector() as collector,
        AnsweringUpstream(lambda _: response(b"{}", status=503)) as broken,
        AnsweringUpstream() as whole,
    ):
        upstreams = {"broken": upstream_config(broken.url), "whole": upstream_config(whole.url)}
        routes = RouteConfig(upstream="broken"), RouteConfig(upstream="whole", model="theirs", priority=1)
        settings = {**traced(collector), "retries": RetriesConfig(attempts=3, backoff=0.0)}
        async with (
            running(upstreams, models={"m": ModelConfig(routes=routes)}, settings=settings) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert (await client.ask("POST", CHAT, BODY)).status == 200
        (served,), (first, second) = collector.served, collector.asked
        assert (served.parent_id, served.has_remote_parent) == ("", False)
        assert (first.parent_id, second.parent_id) == (served.span_id, served.span_id)
        assert parents(broken.requests[0]) == [(served.trace_id, first.span_id, "01")]
        assert parents(whole.requests[0]) == [(served.trace_id, second.span_id, "01")]
        assert (first.name, first.attributes["sluice.upstream"], first.is_error) == ("chat m", "broken", True)
        assert (first.attributes["error.type"], first.attributes["http.response.status_code"]) == ("503", 503)
        assert "http.request.resend_count" not in first.attributes
        assert (second.name, second.attributes["sluice.upstream"], second.is_error) == ("chat theirs", "whole", False)
        assert second.attributes["http.request.resend_count"] == 1
        assert "error.type" not in second.attributes
        assert first.end_ns <= second.start_ns
        assert not served.is_error


async def test_the_try_that_was_outrun_is_told_as_abandoned() -> None:
    with RawUpstream() as slow:
        async with Collector() as collector, AnsweringUpstream() as quick:
            upstreams = {
                "slow": upstream_config(f"http://127.0.0.1:{slow.port}/v1"),
                "quick": upstream_config(quick.url),
            }
            routes = RouteConfig(upstream="slow"), RouteConfig(upstream="quick", priority=1)
            settings = {**traced(collector), "retries": RetriesConfig(attempts=1, hedge_after=0.05)}
            async with (
                running(upstreams, models={"m": ModelConfig(routes=routes)}, settings=settings) as proxy,
                await RecordingClient.connect(proxy.port) as client,
            ):
                client.send("POST", CHAT, BODY)
                peer = await slow.accept()
                lost = await peer.request()
                assert (await client.answer()).status == 200
                await peer.ended()
            first, second = collector.asked
            assert parents(lost)[0][1] == first.span_id
            assert (first.attributes["error.type"], first.is_error) == ("abandoned", False)
            assert "error.type" not in second.attributes


async def test_a_client_that_leaves_is_no_error_of_the_servers() -> None:
    async with Collector() as collector, line(settings=traced(collector)) as through:
        peer, answer = await through.begun()
        await peer.send(chunk(DELTA))
        assert await through.piece(answer) == DELTA
        await through.client.reset()
        await peer.ended()
        await through.proxy.exchange()
        await through.proxy.worker.stop(0.0)
        (served,), (asked,) = collector.served, collector.asked
        assert (served.attributes["http.response.status_code"], served.attributes["error.type"]) == (499, "client_gone")
        assert (served.attributes["sluice.phase"], served.attributes["sluice.aborted_by"]) == ("relay", "client")
        assert (asked.attributes["error.type"], asked.attributes["sluice.grade"]) == ("client_gone", "counted")
        assert (served.is_error, asked.is_error) == (False, False)


async def test_an_upstream_that_breaks_off_is_an_error_of_both() -> None:
    async with Collector() as collector, line(settings=traced(collector)) as through:
        peer, answer = await through.begun()
        await peer.send(chunk(DELTA))
        assert await through.piece(answer) == DELTA
        peer.close()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await through.piece(answer):
                pass
        await through.proxy.exchange()
        await through.proxy.worker.stop(0.0)
        (served,), (asked,) = collector.served, collector.asked
        assert served.attributes["http.response.status_code"] == 200
        assert served.attributes["error.type"] == asked.attributes["error.type"] == "upstream_protocol_error"
        assert (served.is_error, asked.is_error) == (True, True)


async def test_an_upstream_that_nobody_reaches_is_an_error_of_the_try() -> None:
    with RawUpstream() as gone:
        url = f"http://127.0.0.1:{gone.port}/v1"
    async with Collector() as collector:
        async with (
            running(url, settings=traced(collector)) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert (await client.ask("POST", CHAT, BODY)).status == 502
        (served,), (asked,) = collector.served, collector.asked
        assert served.attributes["error.type"] == asked.attributes["error.type"] == "upstream_unreachable"
        assert (served.is_error, asked.is_error, asked.events) == (True, True, [])


async def test_a_quota_refusal_asks_nobody() -> None:
    keys = (KeyConfig(id="team-a", secret=Secret(KEY), plan="small"),)
    async with Collector() as collector, AnsweringUpstream() as up:
        async with (
            running(
                up.url, keys=keys, plans={"small": PlanConfig(requests=("1/day",))}, settings=traced(collector)
            ) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert [(await client.ask("POST", CHAT, BODY)).status for _ in range(2)] == [200, 429]
            refused = (await proxy.exchange(2))["outcome"]
        assert len(collector.asked) == 1
        served = collector.served[-1]
        assert (served.attributes["http.response.status_code"], served.attributes["error.type"]) == (429, refused)
        assert (served.attributes["sluice.key_id"], served.attributes["sluice.phase"]) == ("team-a", "route")
        assert not served.is_error


@pytest.mark.parametrize(
    ("sample", "flags", "exported", "sent"),
    [(0.0, "01", 1, "01"), (0.0, "00", 0, "00"), (1.0, "00", 0, "00"), (0.0, None, 0, "00"), (1.0, None, 1, "01")],
)
async def test_the_client_decides_and_else_the_share(
    sample: float, flags: str | None, exported: int, sent: str
) -> None:
    headers = () if flags is None else (("traceparent", f"00-{TRACE}-{SPAN}-{flags}"),)
    async with Collector() as collector, AnsweringUpstream() as up:
        async with (
            running(up.url, settings=traced(collector, sample=sample)) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert (await client.ask("POST", CHAT, BODY, headers=headers)).status == 200
            trace_id = (await proxy.exchange())["trace_id"]
        assert (len(collector.served), len(collector.asked)) == (exported, exported)
        ((trace, span, got),) = parents(up.requests[0])
        assert (trace, got) == (trace_id, sent)
        assert span != SPAN
        assert (trace == TRACE) == (flags is not None)


@pytest.mark.parametrize("broken", ["", "00-xyz", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01"])
async def test_a_malformed_parent_is_no_parent(broken: str) -> None:
    async with Collector() as collector, AnsweringUpstream() as up:
        async with (
            running(up.url, settings=traced(collector)) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            headers = ("traceparent", broken), ("tracestate", "a=1"), ("Connection", "keep-alive, traceparent")
            assert (await client.ask("POST", CHAT, BODY, headers=headers)).status == 200
        (served,), (asked,) = collector.served, collector.asked
        assert (served.parent_id, served.state) == ("", "")
        assert parents(up.requests[0]) == [(served.trace_id, asked.span_id, "01")]
        assert up.requests[0].lower().count(b"traceparent") == 1
        assert b"tracestate" not in up.requests[0].lower()


async def test_without_tracing_whatever_the_client_says_crosses_as_it_is() -> None:
    async with AnsweringUpstream() as up:
        async with running(up.url) as proxy, await RecordingClient.connect(proxy.port) as client:
            await client.ask("POST", CHAT, BODY, headers=(("TraceParent", "00-odd"), ("tracestate", "a=1")))
            assert "trace_id" not in await proxy.exchange()
        assert b"\r\nTraceParent: 00-odd\r\ntracestate: a=1\r\n" in up.requests[0]


async def test_a_configured_header_is_the_operators_last_word() -> None:
    fixed = f"00-{'a' * 32}-{'b' * 16}-00"
    async with Collector() as collector, AnsweringUpstream() as up:
        upstreams = {"up": upstream_config(up.url, headers={"traceparent": Secret(fixed)})}
        async with (
            running(upstreams, settings=traced(collector)) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert (await client.ask("POST", CHAT, BODY, headers=(PARENT,))).status == 200
        assert parents(up.requests[0]) == [("a" * 32, "b" * 16, "00")]
