"""The API's surface over real sockets: keys, endpoints, models, methods and URLs, and what each refusal says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig
from proxy.config.values import Secret
from tests.fakes.client import RecordingClient
from tests.fakes.refusals import GOOD, MARK, Row, assert_not_logged, assert_refused, assert_serves
from tests.fakes.running import KEY
from tests.fakes.stage import stage

CHAT = "/v1/chat/completions"
NO_KEY = Row(401, "invalid_api_key")
NOT_ALLOWED = Row(403, "endpoint_not_allowed")
UNKNOWN_MODEL = Row(404, "model_not_found")
UNKNOWN_URL = Row(404, "unknown_url")
NO_METHOD = Row(405, "method_not_supported")
EXPIRED = f"sk-expired-{MARK}"


def planned(**plan: Any) -> dict[str, Any]:
    """Settings for `stage`: `KEY` is on this plan."""
    return {"plans": {"p": PlanConfig(**plan)}, "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="p"),)}


def expiring() -> tuple[KeyConfig, ...]:
    gone = datetime(2020, 1, 1, tzinfo=UTC)
    return (KeyConfig(id="team-a", secret=Secret(KEY)), KeyConfig(id="old", secret=Secret(EXPIRED), expires=gone))


CREDENTIALS: dict[str, tuple[tuple[str, str], ...]] = {
    "none": (),
    "unknown": (("Authorization", f"Bearer sk-{MARK}"),),
    "expired": (("Authorization", f"Bearer {EXPIRED}"),),
    "Azure's header, unknown": (("api-key", MARK),),
    "Basic": (("Authorization", f"Basic {KEY}"),),
    "no scheme": (("Authorization", KEY),),
    "no secret": (("Authorization", "Bearer "),),
    "something behind the key": (("Authorization", f"Bearer {KEY} {MARK}"),),
    "cut short": (("Authorization", f"Bearer {KEY[:-1]}"),),
    "another case": (("Authorization", f"Bearer {KEY.upper()}"),),
    "another header": (("x-api-key", KEY), ("Cookie", f"key={KEY}")),
    "not ASCII": (("Authorization", f"Bearer {MARK}é"),),
}


@pytest.mark.parametrize("headers", CREDENTIALS.values(), ids=CREDENTIALS)
async def test_a_request_without_a_good_key_is_refused(headers: tuple[tuple[str, str], ...]) -> None:
    async with stage(keys=expiring()) as (upstream, proxy, client):
        answer = await client.ask("POST", CHAT, GOOD, key=None, headers=headers)
        assert_refused(answer, NO_KEY)
        assert answer.header("www-authenticate") == "Bearer"
        assert_refused(await client.ask("GET", "/v1/models", key=None, headers=headers), NO_KEY)
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy, KEY)


async def test_unknown_and_expired_keys_cannot_be_told_apart() -> None:
    async with stage(keys=expiring()) as (_, _, client):
        answers = [await client.ask("POST", CHAT, GOOD, key=key) for key in ("sk-unknown", EXPIRED, "x")]
        assert len({answer.body for answer in answers}) == 1
        assert len({tuple(name for name, _ in answer.headers) for answer in answers}) == 1


@pytest.mark.parametrize("name", ["key", "api-key", "api_key", "apikey", "access_token", "Authorization"])
async def test_keys_in_query_strings_do_not_work(name: str) -> None:
    async with stage() as (upstream, proxy, client):
        assert_refused(await client.ask("POST", f"{CHAT}?{name}={KEY}", GOOD, key=None), NO_KEY)
        assert upstream.requests == []
    assert_not_logged(proxy, KEY)


@pytest.mark.parametrize("header", [("Authorization", f"bearer  {KEY} "), ("api-key", KEY), ("Api-Key", KEY)])
async def test_keys_come_as_bearer_or_api_key(header: tuple[str, str]) -> None:
    async with stage() as (_, _, client):
        assert (await client.ask("POST", CHAT, GOOD, key=None, headers=(header,))).status == 200


async def test_without_any_key_every_request_is_refused() -> None:
    async with stage(keys=()) as (upstream, _, client):
        assert_refused(await client.ask("POST", CHAT, GOOD), NO_KEY)
        assert_refused(await client.ask("GET", "/v1/files"), NO_KEY)
        assert upstream.requests == []


MODELS = {"known": ModelConfig(), "secret": ModelConfig(), "open-*": ModelConfig()}


@pytest.mark.parametrize(
    ("path", "row"), [(CHAT, UNKNOWN_MODEL), ("/v1/responses", Row(400, "model_not_found", "model"))]
)
async def test_a_model_outside_the_plan_and_an_unknown_one_cannot_be_told_apart(path: str, row: Row) -> None:
    async with stage(models=MODELS, **planned(models=("known", "open-*", "planned-only"))) as (upstream, proxy, client):
        bodies = set()
        for name in ("secret", MARK, "planned-only", "Known", "known ", "open"):
            answer = await client.ask("POST", path, {"model": name, "input": "a"})
            assert name in answer.error["message"]
            bodies.add(answer.body.replace(name.encode(), b"X"))
            if name != MARK:
                assert_refused(answer, row)
        assert len(bodies) == 1
        assert upstream.requests == []
        for name in ("known", "open-source"):
            assert (await client.ask("POST", path, {"model": name})).status == 200
    assert_not_logged(proxy, "secret", "planned-only")


async def test_a_plan_with_a_list_of_models_needs_a_model_on_every_endpoint() -> None:
    async with stage(**planned(models=("known",))) as (upstream, _, client):
        answer = await client.ask("POST", "/v1/moderations", {"input": "a"})
        assert_refused(answer, Row(400, "missing_required_parameter", "model"))
        assert upstream.requests == []


STATEFUL = [("GET", "/v1/files"), ("DELETE", "/v1/responses/resp_1"), ("POST", "/v1/batches"), ("GET", "/v1/threads/t")]


@pytest.mark.parametrize("settings", [{}, planned()], ids=["no plan", "a plan that says nothing"])
async def test_stateful_endpoints_are_refused_unless_the_plan_names_them(settings: dict[str, Any]) -> None:
    async with stage(**settings) as (upstream, proxy, client):
        for method, path in STATEFUL:
            assert_refused(await client.ask(method, path + f"?{MARK}"), NOT_ALLOWED)
        assert_refused(await client.ask("GET", f"/v1/{MARK}"), NOT_ALLOWED)
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
    assert_not_logged(proxy)


async def test_stateful_endpoints_pass_where_the_plan_says_so() -> None:
    async with stage(**planned(endpoints=("inference", "stateful"))) as (upstream, _, client):
        for method, path in STATEFUL:
            assert (await client.ask(method, path + "?after=x%20y")).status == 200
        assert (await client.ask("POST", CHAT, GOOD)).status == 200
        firsts = [request.split(b"\r\n")[0].decode() for request in upstream.requests[:-1]]
        assert firsts == [f"{method} {path}?after=x%20y HTTP/1.1" for method, path in STATEFUL]


GLOBBED = [
    (("/files*",), "GET", "/v1/files/f-1/content", 200),
    (("/files*",), "GET", "/files?a=1", 200),
    (("/files/*",), "GET", "/v1/files/f-1", 200),
    (("/files/*",), "GET", "/v1/files", 403),
    (("/files*",), "GET", "/v1/batches", 403),
    (("/files*",), "POST", CHAT, 403),
    (("/chat/*",), "POST", CHAT, 200),
    (("/chat/*",), "POST", "/v1/embeddings", 403),
    (("stateful",), "POST", CHAT, 403),
    (("/embeddings",), "POST", "/openai/v1/embeddings", 200),
]


@pytest.mark.parametrize(("endpoints", "method", "path", "status"), GLOBBED)
async def test_plans_may_name_endpoints_by_their_paths(
    endpoints: tuple[str, ...], method: str, path: str, status: int
) -> None:
    async with stage(**planned(endpoints=endpoints)) as (upstream, _, client):
        answer = await client.ask(method, path, GOOD if method == "POST" else None)
        assert answer.status == status
        assert len(upstream.requests) == (status == 200)
        if status == 403:
            assert_refused(answer, NOT_ALLOWED)


URLS: list[tuple[str, str, Row]] = [
    ("GET", "/", UNKNOWN_URL),
    ("POST", "/v1", UNKNOWN_URL),
    ("POST", "/v1/CHAT/completions", UNKNOWN_URL),
    ("POST", "/v1/v1/chat/completions", UNKNOWN_URL),
    ("POST", "/openai/v1/openai/v1/chat/completions", UNKNOWN_URL),
    ("GET", "/v1/embeddings", NO_METHOD),
    ("PUT", CHAT, NO_METHOD),
    ("DELETE", "/v1/responses", NO_METHOD),
    ("PROPFIND", CHAT, NO_METHOD),
    ("TRACE", CHAT, NO_METHOD),
    ("POST", "/v1//chat/completions", Row(400)),
    ("POST", "/v1/chat/../chat/completions", Row(400)),
    ("POST", "/v1/chat/completions#x", Row(400)),
    ("POST", "/v1/chat/%2e%2e/embeddings", Row(400)),
    ("POST", "/v1/chat%2Fcompletions", Row(400)),
    ("POST", "/v1/chat\\completions", Row(400)),
    ("GET", "/v1/files/%00", Row(400)),
    ("GET", "/v1/files/%252e%252e/x", Row(400)),
    ("GET", "/v1/models/%2e%2e/files", Row(400)),
]


@pytest.mark.parametrize(("method", "path", "row"), URLS)
async def test_urls_without_an_endpoint_are_refused_whatever_the_plan(method: str, path: str, row: Row) -> None:
    async with stage(**planned(endpoints=("inference", "stateful"))) as (upstream, proxy, client):
        assert_refused(await client.ask(method, f"{path}?q={MARK}", GOOD if method == "POST" else None), row)
        assert upstream.requests == []
        await assert_serves(proxy, upstream, client)
        assert proxy.sample("sluice_exchanges_in_flight", phase="authenticate") == 0
    assert_not_logged(proxy)


async def test_head_has_the_status_and_headers_of_get_and_no_body() -> None:
    async with stage() as (_, _, client):
        for path, status in (("/v1/models", 200), ("/v1/files", 403), ("/", 404), ("/v1/models/..", 400)):
            answers = [await client.ask(method, path) for method in ("HEAD", "GET")]
            assert [answer.status for answer in answers] == [status, status]
            lengths = [answer.header("content-length") for answer in answers]
            assert lengths[0] == lengths[1] == str(len(answers[1].body))
        assert_refused(await client.ask("GET", "/v1/files"), NOT_ALLOWED)


async def test_prefixes_lead_to_the_same_endpoint() -> None:
    prefixes = ("", "/v1", "/openai/v1", "/openai/deployments/gpt-test", "/openai")
    async with stage() as (upstream, proxy, client):
        for prefix in prefixes:
            assert (await client.ask("POST", f"{prefix}/chat/completions?api-version=1", GOOD)).status == 200
        targets = {request.split(b" ")[1] for request in upstream.requests}
        assert targets == {b"/v1/chat/completions?api-version=1"}
        await proxy.exchange(len(prefixes))
        assert {line["endpoint"] for line in proxy.exchanges} == {"chat/completions"}


async def test_no_answer_of_another_request_is_ever_mixed_in() -> None:
    """Refusals and answers alternate on one connection, each with an id of its own."""
    async with stage() as (_, proxy, client):
        ids = []
        for number in range(10):
            answer = await client.ask("POST", CHAT, GOOD if number % 2 else {})
            assert answer.status == (200 if number % 2 else 400)
            ids.append(answer.header("x-sluice-id"))
        await proxy.exchange(10)
        assert [line["id"] for line in proxy.exchanges] == ids
        assert len(set(ids)) == 10


async def test_answers_while_draining_close_the_connection() -> None:
    async with stage() as (_, proxy, client):
        proxy.worker.app.drain()
        assert (await client.ask("POST", CHAT, GOOD)).header("connection") == "close"
        assert await client.reader.read() == b""
        async with await RecordingClient.connect(proxy.port) as other:
            assert_refused(await other.ask("POST", CHAT, {}), Row(400, "missing_required_parameter", "model"))
