"""Tracing gives nothing away; a collector that is away, hangs or refuses delays nobody; exemplars lead to traces."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser

from proxy.config.settings import KeyConfig, TracingConfig
from proxy.config.values import Secret
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.collector import Collector
from tests.fakes.running import running, upstream_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.running import Running

CHAT = "/v1/chat/completions"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
CLIENT_KEY, UPSTREAM_KEY, COLLECTOR_KEY = "ck-zq7client", "uk-zq7upstream", "zq7collector"
PROMPT, COMPLETION, QUERY, HEADER, PATH = "zq7prompt", "zq7completion", "zq7query", "zq7header", "zq7path"
WRONG_KEY = "ck-zq7wrong"


def body(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}


def answer(request: bytes) -> bytes:
    """By the model's name: streamed, quoting the credential, dead, or plain."""
    if b'"streamed"' in request:
        delta = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{COMPLETION}"}}}}]}}\n\n'.encode()
        return response(delta, content_type="text/event-stream", extra=f"x-account: {HEADER}\r\n")
    if b'"quoting"' in request:
        return response(f'{{"error":{{"message":"Incorrect API key: {UPSTREAM_KEY}"}}}}'.encode(), status=401)
    if b'"dead"' in request:
        return b""
    return response(f'{{"choices":[{{"message":{{"content":"{COMPLETION}"}}}}]}}'.encode())


async def test_no_secret_prompt_answer_query_or_path_is_exported() -> None:
    async with Collector() as collector, AnsweringUpstream(answer) as up:
        upstreams = {"up": upstream_config(up.url, api_keys=(Secret(UPSTREAM_KEY),), query={"code": QUERY})}
        keys = (KeyConfig(id="team-a", secret=Secret(CLIENT_KEY)),)
        tracing = TracingConfig(endpoint=collector.endpoint, headers={"authorization": Secret(COLLECTOR_KEY)})
        async with (
            running(upstreams, keys=keys, settings={"tracing": tracing}) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            headers = (("X-Custom", HEADER), ("Cookie", HEADER), ("baggage", f"user={HEADER}"))
            for key, path, asked in [
                (CLIENT_KEY, f"{CHAT}?token={QUERY}", body("plain")),
                (CLIENT_KEY, CHAT, body("streamed", stream=True)),
                (CLIENT_KEY, CHAT, body("quoting")),
                (CLIENT_KEY, CHAT, body("dead")),
                (CLIENT_KEY, CHAT, {"model": {PROMPT: 1}}),
                (WRONG_KEY, CHAT, body("plain")),
                (None, f"{CHAT}?api-key={CLIENT_KEY}", body("plain")),
                (CLIENT_KEY, f"/v1/images/{PATH}", body("plain")),
                (CLIENT_KEY, f"/v1/files/{PATH}", body("plain")),
                (CLIENT_KEY, f"/nowhere/{PATH}", body("plain")),
            ]:
                await client.ask("POST", path, asked, key=key, headers=headers)
            await client.ask("GET", f"/v1/files/{PATH}?token={QUERY}", key=CLIENT_KEY, headers=headers)
            await client.ask("PROPFIND", f"/{PATH}", key=CLIENT_KEY)
            await proxy.exchange(12)
        assert len(collector.served) == 12
        assert len(collector.asked) == 5
        assert {span.attributes["http.request.method"] for span in collector.served} == {"POST", "GET", "_OTHER"}
        exported = b"".join(request.partition(b"\r\n\r\n")[2] for request in collector.requests)
        assert b"zq7" not in exported
        assert all(f"authorization: {COLLECTOR_KEY}" in head for head in collector.heads)
        assert "zq7collector" not in proxy.log_text


@contextlib.asynccontextmanager
async def broken_collector(how: str) -> AsyncIterator[str]:
    """Where no span arrives."""
    if how == "refusing":
        async with Collector(status=403) as collector:
            yield collector.endpoint
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if how == "absent":
            listener.close()
        yield endpoint


async def asked(proxy: Running, times: int) -> list[float]:
    """So many chats one after the other; how long each took, in seconds."""
    took_s = []
    async with await RecordingClient.connect(proxy.port) as client:
        for _ in range(times):
            began_s = time.perf_counter()
            assert (await client.ask("POST", CHAT, body("plain"))).status == 200
            took_s.append(time.perf_counter() - began_s)
    return took_s


@pytest.mark.parametrize("how", ["refusing", "absent", "hanging"])
async def test_a_collector_that_takes_nothing_delays_nobody_nor_the_stop(how: str) -> None:
    async with broken_collector(how) as endpoint, AnsweringUpstream(answer) as up:
        async with running(up.url, settings={"tracing": TracingConfig(endpoint=endpoint)}) as proxy:
            # 600 spans: more than one batch, so that the exporter is at it meanwhile
            assert max(await asked(proxy, 300)) < 2.0
            began_s = time.perf_counter()
            await proxy.worker.stop(0.0)
            assert time.perf_counter() - began_s < 8.0
        said = [line for line in proxy.lines if line["event"].startswith("spans are lost")]
        assert 1 <= len(said) <= 2, "by the exporter, and at the stop: not for each of 300"
        assert not [line for line in proxy.lines if line.get("logger", "").startswith("opentelemetry")]
        if how == "refusing":
            assert proxy.sample("sluice_spans_lost_total") == 600


async def test_times_lead_to_the_trace_as_exemplars() -> None:
    async with Collector() as collector, AnsweringUpstream(answer) as up:
        tracing = {"tracing": TracingConfig(endpoint=collector.endpoint)}
        async with running(up.url, settings=tracing) as proxy:
            await asked(proxy, 1)
            trace_id = (await proxy.exchange())["trace_id"]
            text = await scraped(proxy)
        assert exemplars(text) == {
            "sluice_time_to_first_byte_seconds_bucket": {trace_id},
            "sluice_duration_seconds_bucket": {trace_id},
        }
        assert collector.served[0].trace_id == trace_id


@pytest.mark.parametrize("sample", [0.0, None])
async def test_no_exemplar_leads_to_a_trace_that_nobody_keeps(sample: float | None) -> None:
    async with Collector() as collector, AnsweringUpstream(answer) as up:
        settings = {} if sample is None else {"tracing": TracingConfig(endpoint=collector.endpoint, sample=sample)}
        async with running(up.url, settings=settings) as proxy:
            await asked(proxy, 1)
            await proxy.exchange()
            assert exemplars(await scraped(proxy)) == {}
        assert collector.requests == []


async def scraped(proxy: Running) -> str:
    async with await RecordingClient.connect(proxy.ops_port) as client:
        return (await client.ask("GET", "/metrics", key=None, headers=(("Accept", OPENMETRICS),))).body.decode()


def exemplars(text: str) -> dict[str, set[str]]:
    """The trace ids of each name's exemplars."""
    found: dict[str, set[str]] = {}
    families = openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # the library's
    for sample in (sample for family in families for sample in family.samples):
        if sample.exemplar is not None:
            found.setdefault(sample.name, set()).add(sample.exemplar.labels["trace_id"])
    return found
