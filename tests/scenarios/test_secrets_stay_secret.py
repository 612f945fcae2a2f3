"""Promise 9: keys, prompts and completions never appear in logs, metrics, errors or representations of objects."""

from __future__ import annotations

import contextlib
import gc
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import KeyConfig, PlanConfig
from proxy.config.values import Secret, SecretUrl
from proxy.phases import pipeline
from proxy.phases.record import Ending, record
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import Answer, RecordingClient
from tests.fakes.connect_proxy import ConnectProxy
from tests.fakes.running import Running, running, upstream_config
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


# none begins with sk-: what the log's last filter would mask must not get that far
CLIENT_KEY = "ck-zq7client"
EXPIRED_KEY = "ck-zq7expired"
WRONG_KEY = "ck-zq7wrong"
UPSTREAM_KEY = "uk-zq7upstream"
PROMPT = "zq7prompt"
COMPLETION = "zq7completion"
FILE = "zq7file"
COOKIE = "zq7cookie"
CONFIGURED_HEADER = "zq7configuredheader"
CONFIGURED_QUERY = "zq7configuredquery"
CLIENT_QUERY = "zq7clientquery"
CLIENT_HEADER = "zq7clientheader"
PROXY_USER, PROXY_PASSWORD = "zq7user", "zq7password"
UPSTREAM_COOKIE = "zq7upstreamcookie"
ACCOUNT = "zq7account"
SECRETS = (
    *(CLIENT_KEY, EXPIRED_KEY, WRONG_KEY, UPSTREAM_KEY, PROMPT, COMPLETION, FILE, COOKIE, CONFIGURED_HEADER),
    *(CONFIGURED_QUERY, CLIENT_QUERY, CLIENT_HEADER, PROXY_USER, PROXY_PASSWORD, UPSTREAM_COOKIE, ACCOUNT),
)
EXPIRY = datetime(2020, 1, 1, tzinfo=UTC)

CHAT = "/v1/chat/completions"
HEADERS = (("Cookie", f"session={COOKIE}"), ("X-Custom", CLIENT_HEADER), ("openai-organization", CLIENT_HEADER))
PRIVATE = f"Set-Cookie: a={UPSTREAM_COOKIE}\r\nopenai-organization: {ACCOUNT}\r\nx-ratelimit-limit-requests: 7\r\n"
DELTA = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{COMPLETION}"}}}}]}}\n\n'.encode()
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
FORM = (
    f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    f'--b\r\nContent-Disposition: form-data; name="file"; filename="{FILE}"\r\n\r\n{FILE}\r\n--b--\r\n'
).encode()


def answer(request: bytes) -> bytes:
    """By the model's name: well, badly, or not at all; always with the completion and what a client must not see."""
    events = "text/event-stream"
    if b'"truncated"' in request:
        return response(DELTA, content_type=events, extra=PRIVATE)
    if b'"streamed"' in request:
        return response(DELTA + FINISH, content_type=events, extra=PRIVATE)
    if b'"unasked"' in request:
        return response(f'{{"content":"{COMPLETION}"}}'.encode(), extra=PRIVATE)
    if b'"garbage"' in request:
        return f"HTTP/9.9 {COMPLETION}\r\n{COMPLETION}\r\n\r\n".encode()
    if b'"dead"' in request:
        return b""
    if b'"quoting"' in request:
        body = f'{{"error":{{"message":"Incorrect API key provided: {UPSTREAM_KEY}"}}}}'.encode()
        return response(body, status=401, extra=PRIVATE)
    return response(f'{{"choices":[{{"message":{{"content":"{COMPLETION}"}}}}]}}'.encode(), extra=PRIVATE)


@contextlib.asynccontextmanager
async def secretive(log_level: str) -> AsyncIterator[Running]:
    """A proxy with a secret wherever a configuration can have one, its upstream behind an outbound proxy."""
    async with AnsweringUpstream(answer) as upstream, ConnectProxy() as outbound:
        settings = upstream_config(
            upstream.url,
            api_keys=(Secret(UPSTREAM_KEY),),
            headers={"X-Configured": Secret(CONFIGURED_HEADER)},
            query={"code": CONFIGURED_QUERY},
            proxy=SecretUrl(f"http://{PROXY_USER}:{PROXY_PASSWORD}@127.0.0.1:{outbound.port}"),
        )
        keys = (
            KeyConfig(id="team-a", secret=Secret(CLIENT_KEY), plan="all"),
            KeyConfig(id="old", secret=Secret(EXPIRED_KEY), expires=EXPIRY),
        )
        plans = {"all": PlanConfig(endpoints=("inference", "stateful"))}
        async with running({"up": settings}, keys=keys, plans=plans, log_level=log_level) as proxy:
            yield proxy
        assert f"code={CONFIGURED_QUERY}".encode() in upstream.requests[0]
        assert CONFIGURED_HEADER.encode() in upstream.requests[0]


def asked(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}


ASKS: list[tuple[str, str, dict[str, Any] | bytes | None, str | None, int]] = [
    ("POST", CHAT, asked("plain"), CLIENT_KEY, 200),
    ("POST", f"{CHAT}?token={CLIENT_QUERY}", asked("streamed", stream=True), CLIENT_KEY, 200),
    ("POST", CHAT, asked("truncated", stream=True), CLIENT_KEY, 200),
    ("POST", CHAT, asked("unasked", stream=True), CLIENT_KEY, 502),
    ("POST", CHAT, asked("garbage"), CLIENT_KEY, 502),
    ("POST", CHAT, asked("dead"), CLIENT_KEY, 502),
    ("POST", CHAT, asked("quoting"), CLIENT_KEY, 401),
    ("POST", CHAT, f'{{"model":"m","messages":[{{"content":"{PROMPT}"'.encode(), CLIENT_KEY, 400),
    ("POST", CHAT, f'{{"model":{{"{PROMPT}":1}}}}'.encode(), CLIENT_KEY, 400),
    ("POST", CHAT, asked("plain"), WRONG_KEY, 401),
    ("POST", CHAT, asked("plain"), EXPIRED_KEY, 401),
    ("POST", f"{CHAT}?api-key={CLIENT_KEY}", asked("plain"), None, 401),
    ("GET", f"/v1/files?token={CLIENT_QUERY}", None, CLIENT_KEY, 200),
    ("GET", f"/v1/files/%2e%2e/{CLIENT_QUERY}", None, CLIENT_KEY, 400),
    ("GET", "/v1/models", None, CLIENT_KEY, 200),
]


async def run_all(proxy: Running) -> list[Answer]:
    """The whole mix, faults of our own included; what clients were told."""
    answers = []
    async with await RecordingClient.connect(proxy.port) as client:
        for method, path, body, key, status in ASKS:
            answers.append(await client.ask(method, path, body, key=key, headers=HEADERS))
            assert answers[-1].status == status, (path, body, answers[-1])
        form = (("Content-Type", "multipart/form-data; boundary=b"), *HEADERS)
        answers.append(await client.ask("POST", "/v1/audio/transcriptions", FORM, key=CLIENT_KEY, headers=form))
        assert answers[-1].status == 200
        client.writer.write(f"POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {CLIENT_KEY}\r\n{PROMPT}\r\n\r\n".encode())
        answers.append(await client.answer())
        assert answers[-1].status == 400
    async with await RecordingClient.connect(proxy.port) as client:
        client.send("POST", CHAT, asked("plain"), key=CLIENT_KEY, headers=(("Expect", PROMPT),))
        answers.append(await client.answer())
        assert answers[-1].status == 417
    return answers


def assert_no_secret(text: str, where: str) -> None:
    assert [secret for secret in SECRETS if secret in text] == [], where


async def metrics_text(proxy: Running) -> str:
    async with await RecordingClient.connect(proxy.ops_port) as client:
        return (await client.ask("GET", "/metrics", key=None)).body.decode()


@pytest.mark.parametrize("log_level", ["debug", "info"])
async def test_no_secret_is_in_logs_metrics_or_errors(log_level: str) -> None:
    async with secretive(log_level) as proxy:
        answers = await run_all(proxy)
        await proxy.exchange(len(ASKS) + 2)
        assert_no_secret(await metrics_text(proxy), "metrics")
        for got in answers:
            if got.status >= 400:
                assert_no_secret(got.body.decode(), f"the body of a {got.status}")
            shown = "\n".join(f"{name}: {value}" for name, value in got.headers)
            assert_no_secret(shown, f"the head of a {got.status}")
            assert got.header("x-ratelimit-limit-requests") is None
    assert_no_secret(proxy.log_text, "the log")
    assert len(proxy.exchanges) == len(ASKS) + 2


async def test_the_error_event_of_a_cut_stream_quotes_nothing() -> None:
    async with secretive("debug") as proxy, await RecordingClient.connect(proxy.port) as client:
        got = await client.ask("POST", CHAT, asked("truncated", stream=True), key=CLIENT_KEY)
        said, error, done = got.body.partition(b'data: {"error"')
        assert COMPLETION.encode() in said
        assert error
        assert_no_secret(done.decode(), "the error event")


async def test_a_fault_of_our_own_is_logged_with_its_place_and_without_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(f"{PROMPT} {CLIENT_KEY} {UPSTREAM_KEY}") from KeyError(COMPLETION)

    monkeypatch.setattr(pipeline, "find", fail)
    async with secretive("debug") as proxy, await RecordingClient.connect(proxy.port) as client:
        got = await client.ask("POST", CHAT, asked("plain"), key=CLIENT_KEY)
        assert (got.status, got.error["code"]) == (500, "internal_error")
        assert_no_secret(got.body.decode(), "the error's body")
        await proxy.exchange()
        monkeypatch.undo()
        assert (await client.ask("POST", CHAT, asked("plain"), key=CLIENT_KEY)).status == 200
    assert_no_secret(proxy.log_text, "the log")
    (fault,) = [line for line in proxy.lines if line["event"] == "fault"]
    assert fault["exception"] == "ValueError from KeyError"
    assert any("test_secrets_stay_secret.py" in place for place in fault["at"])
    assert proxy.exchanges[0]["fault"] == "ValueError"


async def test_a_background_task_that_fails_is_logged_without_its_words() -> None:
    async def fail() -> None:
        raise RuntimeError(f"{PROMPT} {CLIENT_KEY}")

    async with secretive("debug") as proxy, await RecordingClient.connect(proxy.port) as client:
        failing = proxy.worker.app.tasks.start(fail(), "probe")
        assert (await client.ask("POST", CHAT, asked("plain"), key=CLIENT_KEY)).status == 200
        await until(lambda: "background task probe failed: RuntimeError" in proxy.log_text, "the task's line")
        assert failing.done()
    assert_no_secret(proxy.log_text, "the log")


async def test_no_object_shows_a_secret_when_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends up in a traceback, a debugger or a careless log line."""
    seen: list[object] = []

    def keep(ending: Ending, *rest: Any) -> None:
        exchange, findings = ending.exchange, ending.findings
        seen.extend((ending, exchange, findings, findings.principal, findings.admission, findings.hop, findings.answer))
        seen.extend((findings.relayed, findings.account, findings.observer, findings.settlement))
        seen.extend((findings.error, exchange.downstream, exchange.body))
        if findings.answer is not None:
            seen.extend((findings.answer.stream, findings.answer.watchdog))
        record(ending, *rest)

    monkeypatch.setattr(pipeline, "record", keep)
    async with secretive("info") as proxy:
        await run_all(proxy)
        app = proxy.worker.app
        seen += [proxy.worker, proxy.worker.config, app, app.pipeline, app.pipeline._router]
        seen += [app.pipeline._authenticator, app.pipeline._authenticator._keyring]
        seen += [upstream.pool for upstream in app.upstreams.values()]
        seen += [upstream.pool.origin for upstream in app.upstreams.values()]
        seen += [thing for thing in gc.get_objects() if str(type(thing).__module__).startswith("proxy.")]
        for thing in seen:
            # a configured query is a plain setting, such as Azure's api-version; it is only kept from clients and logs
            for text in (repr(thing).replace(CONFIGURED_QUERY, ""), str(thing).replace(CONFIGURED_QUERY, "")):
                assert_no_secret(text, f"{type(thing).__module__}.{type(thing).__name__}")
