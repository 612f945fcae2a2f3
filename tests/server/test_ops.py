"""The ops listener: health, readiness and metrics; and nothing of it on the API's port."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.fakes.client import Answer, RecordingClient
from tests.fakes.refusals import GOOD
from tests.fakes.stage import stage

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def ask(port: int, method: str, path: str, accept: str = "*/*") -> Answer:
    async with await RecordingClient.connect(port) as client:
        return await client.ask(method, path, key=None, headers=(("Accept", accept),))


async def test_health_is_the_event_loop_answering() -> None:
    async with stage() as (_, proxy, _):
        for _ in range(2):
            answer = await ask(proxy.ops_port, "GET", "/healthz")
            assert (answer.status, answer.json) == (200, {"status": "ok"})
            assert answer.header("content-type") == "application/json"
            proxy.worker.app.drain()  # a draining process is as healthy as before


async def test_readiness_ends_with_the_drain() -> None:
    async with stage() as (_, proxy, _):
        ready = await ask(proxy.ops_port, "GET", "/readyz")
        assert (ready.status, ready.json) == (200, {"status": "ready", "why": []})
        proxy.worker.app.drain()
        draining = await ask(proxy.ops_port, "GET", "/readyz")
        assert (draining.status, draining.json) == (503, {"status": "not ready", "why": ["draining"]})
        assert draining.header("content-type") == "application/json"


async def test_metrics_are_prometheus_text_by_default() -> None:
    async with stage() as (_, proxy, client):
        assert (await client.ask("POST", "/v1/chat/completions", GOOD)).status == 200
        await proxy.exchange()
        answer = await ask(proxy.ops_port, "GET", "/metrics")
        assert answer.status == 200
        assert (answer.header("content-type") or "").startswith("text/plain; version=")
        families = {family.name: family for family in parse_text(answer.body.decode())}
        counted = [sample for sample in families["sluice_requests"].samples if sample.name == "sluice_requests_total"]
        assert [(sample.labels["key"], sample.labels["outcome"], sample.value) for sample in counted] == [
            ("team-a", "ok", 1.0)
        ]


async def test_metrics_are_openmetrics_where_that_is_asked_for() -> None:
    async with stage() as (_, proxy, _):
        answer = await ask(proxy.ops_port, "GET", "/metrics", OPENMETRICS)
        assert (answer.header("content-type") or "").startswith("application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")
        families = parse_openmetrics(answer.body.decode())  # type: ignore[no-untyped-call]  # the library left it so
        assert "sluice_build_info" in {family.name for family in families}


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/chat/completions", "/metrics/", "/healthz/x", "/admin/keys"])
async def test_nothing_else_is_there(path: str) -> None:
    async with stage() as (_, proxy, _):
        answer = await ask(proxy.ops_port, "GET", path)
        assert (answer.status, answer.header("content-type")) == (404, "application/json")
        assert answer.json["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_changed(method: str) -> None:
    async with stage() as (_, proxy, _):
        answer = await ask(proxy.ops_port, method, "/metrics")
        assert (answer.status, answer.header("content-type")) == (405, "application/json")
        assert answer.header("allow") == "GET, HEAD"


async def test_head_is_get_without_the_body() -> None:
    async with stage() as (_, proxy, _):
        head = await ask(proxy.ops_port, "HEAD", "/healthz")
        assert (head.status, head.header("content-length")) == (200, str(len(b'{"status":"ok"}')))


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/admin/keys"])
async def test_operators_pages_are_never_on_the_api_port(path: str) -> None:
    async with stage() as (upstream, proxy, client):
        for key, status in ((None, 401), ("sk-test-key-0123456789", 403)):
            answer = await client.ask("GET", path, key=key)
            assert answer.status == status
            assert b"sluice_" not in answer.body
        assert upstream.requests == []
        assert proxy.port != proxy.ops_port


async def test_broken_requests_get_an_answer_in_json() -> None:
    async with stage() as (_, proxy, _), await RecordingClient.connect(proxy.ops_port) as client:
        client.writer.write(b"nonsense\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.header("content-type")) == (400, "application/json")


async def test_metrics_can_be_read_while_a_client_is_connected_to_the_api() -> None:
    """The ops listener has connections of its own: a full API does not blind the operator."""
    async with stage(server={"max_connections": 1}) as (_, proxy, client):
        assert (await client.ask("GET", "/v1/models")).status == 200
        assert (await ask(proxy.port, "GET", "/v1/models")).status == 503
        assert (await ask(proxy.ops_port, "GET", "/metrics")).status == 200
