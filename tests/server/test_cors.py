"""CORS: every answer carries it for allowed origins, errors and streams included; none does otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.core.headers import CORS_EXPOSED
from proxy.server.cors import Cors
from tests.fakes.answering import chat, response
from tests.fakes.refusals import GOOD
from tests.fakes.stage import stage

if TYPE_CHECKING:
    from tests.fakes.client import Answer, RecordingClient

APP = "https://app.example"
OTHER = "https://other.example"
# what each request is answered with, with and without CORS
ASKED = {
    "an answer": ("POST", "/v1/chat/completions", GOOD, "known", 200),
    "a stream": ("POST", "/v1/chat/completions", {**GOOD, "stream": True}, "known", 200),
    "models": ("GET", "/v1/models", None, "known", 200),
    "a bad body": ("POST", "/v1/chat/completions", {}, "known", 400),
    "no key": ("POST", "/v1/chat/completions", GOOD, "unknown", 401),
    "not allowed": ("GET", "/v1/files", None, "known", 403),
    "no such URL": ("GET", "/", None, "known", 404),
    "no such method": ("PUT", "/v1/embeddings", {}, "known", 405),
    "the upstream's own error": ("POST", "/v1/embeddings", {"model": "refused"}, "known", 429),
    "a dead upstream": ("POST", "/v1/embeddings", {"model": "dead"}, "known", 502),
}


def upstream_answer(request: bytes) -> bytes:
    """What the upstream says; its own CORS headers must not show."""
    if b"refused" in request:
        return response(b'{"error":{}}', status=429, extra="Access-Control-Allow-Origin: *\r\n")
    return b"" if b"dead" in request else chat(request)


async def ask(client: RecordingClient, what: str, origin: str) -> Answer:
    method, path, body, key, status = ASKED[what]
    secret = "sk-test-key-0123456789" if key == "known" else "sk-x"
    answer = await client.ask(method, path, body, key=secret, headers=(("Origin", origin),))
    assert answer.status == status
    return answer


def cors_headers(answer: Answer) -> dict[str, list[str]]:
    names = {name.lower() for name, _ in answer.headers if name.lower().startswith("access-control-")}
    return {name: answer.all(name) for name in names}


@pytest.mark.parametrize("origins", [["*"], [APP, "http://localhost:3000"]], ids=["any", "a list"])
async def test_every_answer_carries_cors_for_an_allowed_origin(origins: list[str]) -> None:
    async with stage(upstream_answer, server={"cors_origins": tuple(origins)}) as (_, _, client):
        for what in ASKED:
            answer = await ask(client, what, APP)
            exposed = ", ".join(CORS_EXPOSED)
            assert cors_headers(answer) == {
                "access-control-allow-origin": [APP],
                "access-control-expose-headers": [exposed],
            }, what
            assert answer.all("vary") == ["Origin"], what


@pytest.mark.parametrize(
    ("origins", "origin"),
    [((), APP), ((APP,), OTHER), ((APP,), "null"), ((APP,), APP + ".evil.example"), ((APP,), APP.upper())],
)
async def test_no_answer_carries_cors_for_any_other_origin(origins: tuple[str, ...], origin: str) -> None:
    async with stage(upstream_answer, server={"cors_origins": origins}) as (_, _, client):
        for what in ASKED:
            assert cors_headers(await ask(client, what, origin)) == {}, what
        preflight = await client.ask("OPTIONS", "/v1/chat/completions", key=None, headers=(("Origin", origin),))
        assert (preflight.status, cors_headers(preflight)) == (204, {})


async def test_a_request_without_an_origin_gets_none() -> None:
    async with stage(server={"cors_origins": ("*",)}) as (_, _, client):
        assert cors_headers(await client.ask("POST", "/v1/chat/completions", GOOD)) == {}


async def test_a_preflight_needs_no_key_and_is_no_exchange() -> None:
    wanted = (
        ("Origin", APP),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,x-custom"),
        ("Access-Control-Request-Private-Network", "true"),
    )
    async with stage(server={"cors_origins": (APP,)}) as (upstream, proxy, client):
        for path in ("/v1/chat/completions", "/v1/files", "/anything", "*"):
            answer = await client.ask("OPTIONS", path, key=None, headers=wanted)
            assert answer.status == 204
            assert answer.header("access-control-allow-origin") == APP
            assert answer.header("access-control-allow-private-network") == "true"
            assert "POST" in (answer.header("access-control-allow-methods") or "")
            allowed = {name.strip() for name in (answer.header("access-control-allow-headers") or "").split(",")}
            assert {"authorization", "content-type", "x-stainless-os", "x-custom"} <= allowed
            assert answer.header("access-control-allow-credentials") is None
        assert upstream.requests == []
        assert (await client.ask("POST", "/v1/chat/completions", GOOD)).status == 200
        await proxy.exchange()
    assert len(proxy.exchanges) == 1
    assert proxy.total("sluice_requests_total") == 1


async def test_the_origin_does_not_reach_the_upstream() -> None:
    async with stage(server={"cors_origins": ("*",)}) as (upstream, _, client):
        await ask(client, "an answer", APP)
        assert b"origin" not in upstream.requests[0].lower()


def test_an_origin_is_echoed_only_as_it_was_configured() -> None:
    cors = Cors([APP])
    assert cors.headers(APP)[0] == (b"Access-Control-Allow-Origin", APP.encode())
    assert cors.headers(OTHER) == []
    assert cors.headers(None) == []
    assert Cors([]).headers(APP) == []
