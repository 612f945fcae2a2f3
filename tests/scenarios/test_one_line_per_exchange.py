"""Promise 10: every exchange, however it ends, leaves one canonical log line and its metrics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.upstreams import TimeoutsConfig
from proxy.phases import pipeline
from tests.fakes.answering import AnsweringUpstream, chat, response
from tests.fakes.client import RecordingClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.refusals import GOOD
from tests.fakes.running import KEY, running, upstream_config
from tests.fakes.stage import stage
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fakes.running import Running

    Leave = Callable[[RecordingClient, Running, RawUpstream], Awaitable[None]]

CHAT = "/v1/chat/completions"
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ALWAYS = (
    *("timestamp", "level", "event", "id", "key_id", "endpoint", "method", "client", "model", "upstream", "status"),
    *("outcome", "phase", "attempts", "duration_s", "phases_s", "received_bytes", "sent_bytes"),
)


def answer(request: bytes) -> bytes:
    """By the model's name."""
    if b'"refused"' in request:
        return response(b'{"error":{"message":"No."}}', status=400)
    if b'"busy"' in request:
        return response(b'{"error":{"message":"No."}}', status=529)
    if b'"truncated"' in request:
        return response(DELTA, content_type="text/event-stream")
    if b'"cut"' in request:
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 99\r\n\r\n{"
    if b'"redirect"' in request:
        return response(b"", status=302, extra="Location: /x\r\n")
    if b'"page"' in request:
        return response(b"<html>", content_type="text/html")
    return b"" if b'"dead"' in request else chat(request)


def asked(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {**GOOD, "model": model, "stream": stream}


@dataclass(frozen=True)
class Case:
    """A request, and what its line says: status, outcome, phase it ended in, whose fault; None where it was none's."""

    body: dict[str, Any] | bytes | None
    line: tuple[int, str, str, str | None]
    method: str = "POST"
    path: str = CHAT
    key: str | None = KEY


BAD, MODELS = "bad_request", "/v1/models"
CASES = {
    "an answer": Case(asked("m"), (200, "ok", "relay", None)),
    "a stream": Case(asked("m", stream=True), (200, "ok", "relay", None)),
    "the list of models": Case(None, (200, "ok", "authenticate", None), "GET", MODELS),
    "a model that is there": Case(None, (200, "ok", "authenticate", None), "GET", MODELS + "/any"),
    "HEAD": Case(None, (200, "ok", "authenticate", None), "HEAD", MODELS),
    "the upstream's 400": Case(asked("refused"), (400, "upstream_error", "relay", None)),
    "the upstream's 529": Case(asked("busy"), (529, "upstream_error", "relay", None)),
    "an upstream that hangs up": Case(asked("dead"), (502, "upstream_protocol_error", "forward", "upstream")),
    "a redirect": Case(asked("redirect"), (502, "upstream_protocol_error", "forward", "upstream")),
    "no stream": Case(asked("page", stream=True), (502, "upstream_not_a_stream", "forward", "upstream")),
    "a truncated stream": Case(asked("truncated", stream=True), (200, "upstream_protocol_error", "relay", "upstream")),
    "a cut answer": Case(asked("cut"), (200, "upstream_protocol_error", "relay", "upstream")),
    "no key": Case(asked("m"), (401, "invalid_api_key", "authenticate", "downstream"), key=None),
    "a wrong key": Case(asked("m"), (401, "invalid_api_key", "authenticate", "downstream"), key="sk-wrong"),
    "an endpoint not allowed": Case(None, (403, "endpoint_not_allowed", "admit", "downstream"), "GET", "/v1/files"),
    "an unknown URL": Case(None, (404, "unknown_url", "authenticate", "downstream"), "GET", "/"),
    "an unknown method": Case(None, (405, "method_not_supported", "authenticate", "downstream"), "PUT"),
    "bad JSON": Case(b"{", (400, BAD, "admit", "downstream")),
    "no model": Case({}, (400, BAD, "admit", "downstream")),
    "a body too large": Case(b"{" * 2000, (413, "request_too_large", "admit", "downstream")),
}


def counted(proxy: Running) -> Counter[tuple[str, str]]:
    """Exchanges by outcome and status, as the metrics have them."""
    found: Counter[tuple[str, str]] = Counter()
    for sample in proxy.samples("sluice_requests_total"):
        found[sample.labels["outcome"], sample.labels["status"]] += int(sample.value)
    return found


def assert_settled(proxy: Running, count: int) -> None:
    """As many lines as exchanges, the same outcomes in the metrics, and nothing is in flight."""
    lines = proxy.exchanges
    assert len(lines) == count
    assert counted(proxy) == Counter((line["outcome"], str(line["status"])) for line in lines)
    assert proxy.total("sluice_requests_total") == count
    assert proxy.total("sluice_duration_seconds_count") == count
    in_flight = [s for f in proxy.metrics._registry.collect() for s in f.samples if s.name.endswith("_in_flight")]
    assert in_flight
    assert [sample for sample in in_flight if sample.value != 0] == []
    assert len({line["id"] for line in lines}) == count
    for line in lines:
        assert [name for name in ALWAYS if name not in line] == []
        assert line["duration_s"] >= sum(line["phases_s"].values()) * 0.99


async def test_every_kind_of_exchange_leaves_its_line_and_its_count() -> None:
    async with stage(answer, server={"max_request_bytes": 1000, "cors_origins": ("*",)}) as (_, proxy, client):
        ids = []
        for count, (name, case) in enumerate(CASES.items(), 1):
            async with await RecordingClient.connect(proxy.port) as asking:
                got = await asking.ask(case.method, case.path, case.body, key=case.key)
            assert got.status == case.line[0], name
            ids.append(got.header("x-sluice-id"))
            line = await proxy.exchange(count)
            assert (line["status"], line["outcome"], line["phase"], line.get("blame")) == case.line, name
            assert line["level"] == (
                "warning" if case.line[0] >= 500 or case.line[3] in ("upstream", "sluice") else "info"
            ), name
            assert line["method"] == case.method
            assert line["sent_bytes"] == len(got.body), name
            # neither of these is an exchange
            assert (await client.ask("OPTIONS", case.path, key=None, headers=(("Origin", "http://a"),))).status == 204
            async with await RecordingClient.connect(proxy.port) as broken:
                broken.writer.write(b"nonsense\r\n\r\n")
                assert (await broken.answer()).status == 400
        assert [line["id"] for line in proxy.exchanges] == ids
        assert_settled(proxy, len(CASES))


async def test_a_line_tells_what_is_known_and_nothing_else() -> None:
    async with stage(answer) as (_, proxy, client):
        await client.ask("POST", CHAT, asked("m", stream=True))
        await client.ask("POST", CHAT, asked("busy"))
        await client.ask("POST", CHAT, {})
        streamed, busy, bad = [await proxy.exchange(count) for count in (1, 2, 3)]
    known = {"key_id": "team-a", "endpoint": "chat/completions", "model": "m", "upstream": "up", "attempts": 1}
    assert {name: streamed[name] for name in known} == known
    assert (streamed["upstream_status"], streamed["events"], streamed["reused"]) == (200, 3, False)
    assert streamed["upstream_bytes"] == streamed["sent_bytes"] > 0
    assert streamed["received_bytes"] == len(json.dumps(asked("m", stream=True)))
    assert 0 < streamed["first_byte_s"] <= streamed["duration_s"]
    assert list(streamed["phases_s"]) == ["authenticate", "admit", "route", "forward", "relay", "settle"]
    assert (busy["upstream_status"], busy["reused"], busy["outcome"]) == (529, True, "upstream_error")
    used = ("grade", "input_tokens", "output_tokens", "cost_usd")
    assert (streamed["grade"], streamed["output_tokens"], streamed["cost_usd"]) == ("counted", 1, 0)
    assert [busy[name] for name in used] == ["exact", 0, 0, 0], "an error costs nothing"
    assert [name for name in used if name in bad] == []
    assert (bad["model"], bad["upstream"], bad["attempts"], bad["key_id"]) == (None, None, 0, "team-a")
    assert [name for name in ("upstream_status", "events", "aborted_by", "error", "fault") if name in bad] == []


async def leave_while_sending_the_body(client: RecordingClient, proxy: Running, _: RawUpstream) -> None:
    client.send("POST", CHAT, key=KEY, headers=(("Transfer-Encoding", "chunked"),))
    client.writer.write(b"1\r\n{\r\n")
    await until(lambda: proxy.sample("sluice_exchanges_in_flight", phase="admit") == 1, "a body being read")


async def leave_while_the_upstream_thinks(client: RecordingClient, _: Running, upstream: RawUpstream) -> None:
    client.send("POST", CHAT, asked("m"))
    await (await upstream.accept()).request()


async def leave_during_the_stream(client: RecordingClient, _: Running, upstream: RawUpstream) -> None:
    client.send("POST", CHAT, asked("m", stream=True))
    peer = await upstream.accept()
    await peer.answer(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(DELTA), DELTA))
    await client.piece(await client.head())


async def leave_while_models_are_listed(client: RecordingClient, _: Running, upstream: RawUpstream) -> None:
    client.send("GET", MODELS)
    await (await upstream.accept()).request()


LEAVING = {
    "admit": leave_while_sending_the_body,
    "forward": leave_while_the_upstream_thinks,
    "relay": leave_during_the_stream,
    "authenticate": leave_while_models_are_listed,
}


@pytest.mark.parametrize(("phase", "leave"), LEAVING.items(), ids=LEAVING)
async def test_a_client_that_leaves_is_one_line_too(phase: str, leave: Leave) -> None:
    with RawUpstream() as upstream:
        async with running(f"http://127.0.0.1:{upstream.port}/v1") as proxy:
            async with await RecordingClient.connect(proxy.port) as client:
                await leave(client, proxy, upstream)
            line = await proxy.exchange()
            assert (line["status"], line["outcome"], line["phase"]) == (499, "client_gone", phase)
            assert (line["aborted_by"], line["blame"]) == ("client", "downstream")
            assert proxy.sample("sluice_aborts_total", phase=phase, by="client") == 1
            assert_settled(proxy, 1)


async def test_an_upstream_nobody_listens_at_is_one_line() -> None:
    async with AnsweringUpstream() as gone:
        url = gone.url
    async with running(url) as proxy, await RecordingClient.connect(proxy.port) as client:
        assert (await client.ask("POST", CHAT, GOOD)).status == 502
        line = await proxy.exchange()
        assert (line["outcome"], line["phase"], line["attempts"]) == ("upstream_unreachable", "forward", 1)
        assert proxy.sample("sluice_upstream_attempts_total", upstream="up", result="upstream_unreachable") == 1
        assert_settled(proxy, 1)


@pytest.mark.parametrize(("which", "phase"), [("first_byte", "forward"), ("idle", "relay"), ("total", "relay")])
async def test_an_upstream_that_takes_too_long_is_one_line(which: str, phase: str) -> None:
    with RawUpstream() as upstream:
        slow = upstream_config(f"http://127.0.0.1:{upstream.port}", timeouts=TimeoutsConfig(**{which: 0.2}))
        async with running({"up": slow}) as proxy, await RecordingClient.connect(proxy.port) as client:
            client.send("POST", CHAT, asked("m", stream=True))
            peer = await upstream.accept()
            await peer.request()
            if phase == "relay":
                await peer.send(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(DELTA), DELTA))
            got = await client.answer()
            assert b"upstream_timeout" in got.body
            line = await proxy.exchange()
            assert (line["outcome"], line["phase"], line["blame"]) == ("upstream_timeout", phase, "upstream")
            assert line["status"] == got.status == (504 if phase == "forward" else 200)
            assert line.get("aborted_by") == (None if phase == "forward" else which)
            assert_settled(proxy, 1)


async def test_what_a_stop_interrupts_is_one_line() -> None:
    with RawUpstream() as upstream:
        async with running(f"http://127.0.0.1:{upstream.port}") as proxy:
            streaming, waiting = [await RecordingClient.connect(proxy.port) for _ in range(2)]
            await leave_during_the_stream(streaming, proxy, upstream)
            await leave_while_the_upstream_thinks(waiting, proxy, upstream)
            await proxy.worker.stop(0.0)
            assert b'"code":"draining"' in (await streaming.reader.read())
            assert (await waiting.answer()).status == 503
            await proxy.exchange(2)
            ended = {(line["phase"], line["status"]): line for line in proxy.exchanges}
            assert set(ended) == {("relay", 200), ("forward", 503)}
            assert {(line["outcome"], line["aborted_by"]) for line in ended.values()} == {("draining", "drain")}
            assert_settled(proxy, 2)
            await streaming.close()
            await waiting.close()


async def test_a_fault_of_our_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "find", fail)
    async with stage() as (_, proxy, client):
        assert (await client.ask("POST", CHAT, GOOD)).status == 500
        line = await proxy.exchange()
        assert (line["outcome"], line["phase"], line["fault"]) == ("internal_error", "route", "ZeroDivisionError")
        assert (line["blame"], line["level"]) == ("sluice", "warning")
        assert_settled(proxy, 1)


async def test_many_at_once_are_as_many_lines() -> None:
    async with stage(answer) as (_, proxy, _):
        models = ["m", "refused", "dead", "busy"] * 15

        async def ask(model: str) -> int:
            async with await RecordingClient.connect(proxy.port) as client:
                return (await client.ask("POST", CHAT, asked(model))).status

        statuses = await asyncio.gather(*map(ask, models))
        assert Counter(statuses) == {200: 15, 400: 15, 502: 15, 529: 15}
        await proxy.exchange(len(models))
        assert_settled(proxy, len(models))
        assert proxy.sample("sluice_upstream_attempts_total", upstream="up", result="2xx") == 15
        assert proxy.sample("sluice_upstream_attempts_total", upstream="up", result="5xx") == 15
