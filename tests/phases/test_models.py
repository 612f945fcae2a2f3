"""`GET /models`: what a key may use, from the configuration and, behind patterns, from the upstreams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig
from proxy.config.upstreams import RouteConfig, TimeoutsConfig
from proxy.config.values import Secret
from proxy.core.patterns import PatternTable
from proxy.phases import models as models_phase
from proxy.phases.models import Catalogue
from proxy.phases.route import Router
from proxy.tasks import BackgroundTasks
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.arrived import arrived, principal
from tests.fakes.client import RecordingClient
from tests.fakes.raw_upstream import FullListener, RawUpstream
from tests.fakes.refusals import Row, assert_refused
from tests.fakes.routes import model, upstream
from tests.fakes.running import KEY, UPSTREAM_KEY, running, upstream_config
from tests.fakes.stage import stage
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import Iterable

LISTED = ("gpt-4o", "gpt-4o-mini", "o1", "org/name", "text-old")


def listing(*names: str) -> bytes:
    data = [{"id": name, "object": "model", "created": 17, "owned_by": "the-lab"} for name in names]
    return response(json.dumps({"object": "list", "data": data}).encode())


def listed(_: bytes) -> bytes:
    return listing(*LISTED)


def planned(*models: str) -> dict[str, Any]:
    key = KeyConfig(id="team-a", secret=Secret(KEY), plan="p")
    return {"plans": {"p": PlanConfig(models=models)}, "keys": (key,)}


class HoldingUpstream(AnsweringUpstream):
    """Answers nobody before `released` is set, or the test is over."""

    def __init__(self) -> None:
        super().__init__(listed)
        self.released = asyncio.Event()

    async def __aexit__(self, *exc_info: object) -> None:
        self.released.set()
        await super().__aexit__(*exc_info)

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        request = await super()._request(reader)
        await self.released.wait()
        return request


def age(catalogue: Catalogue) -> None:
    """What is known becomes so old that it is asked for again."""
    catalogue._kept = {name: (at - 100.0, kept) for name, (at, kept) in catalogue._kept.items()}


async def names(client: RecordingClient) -> list[str]:
    answer = await client.ask("GET", "/v1/models")
    assert (answer.status, answer.header("content-type")) == (200, "application/json")
    assert answer.json["object"] == "list"
    return [model["id"] for model in answer.json["data"]]


async def test_configured_names_are_known_without_asking_anybody() -> None:
    models = {"zeta": ModelConfig(), "alpha": ModelConfig()}
    async with stage(listed, models=models) as (upstream, _, client):
        assert await names(client) == ["alpha", "zeta"]
        assert upstream.requests == []
        answer = await client.ask("GET", "/models/zeta")
        assert answer.json == {"id": "zeta", "object": "model", "created": 0, "owned_by": "sluice"}


async def test_behind_patterns_the_upstream_is_asked() -> None:
    models = {"gpt-*": ModelConfig(), "mine": ModelConfig(), "gpt-4o": ModelConfig()}
    async with stage(listed, models=models) as (upstream, proxy, client):
        assert await names(client) == ["gpt-4o", "gpt-4o-mini", "mine"]
        assert upstream.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
        assert f"\r\nAuthorization: Bearer {UPSTREAM_KEY}\r\n".encode() in upstream.requests[0]
        assert KEY.encode() not in upstream.requests[0]
        answer = await client.ask("GET", "/v1/models/gpt-4o-mini")
        assert answer.json == {"id": "gpt-4o-mini", "object": "model", "created": 17, "owned_by": "the-lab"}
        assert (await proxy.exchange(2))["endpoint"] == "models"


async def test_without_a_configuration_of_models_the_first_upstream_knows_them() -> None:
    async with stage(listed) as (_, _, client):
        assert await names(client) == sorted(LISTED)


async def test_the_plan_filters_the_list_and_its_single_models() -> None:
    async with stage(listed, **planned("gpt-*", "org/*")) as (upstream, _, client):
        assert await names(client) == ["gpt-4o", "gpt-4o-mini", "org/name"]
        asked = len(upstream.requests)
        assert_refused(await client.ask("GET", "/v1/models/o1"), Row(404, "model_not_found"))
        assert len(upstream.requests) == asked


async def test_a_model_outside_the_plan_and_an_unknown_one_cannot_be_told_apart() -> None:
    models = {"known": ModelConfig(), "secret": ModelConfig()}
    async with stage(models=models, **planned("known", "absent")) as (_, _, client):
        bodies = {
            (await client.ask("GET", f"/v1/models/{name}")).body.replace(name.encode(), b"X")
            for name in ("secret", "absent", "nothing")
        }
        assert len(bodies) == 1


@pytest.mark.parametrize("path", ["org/name", "org%2Fname", "org%2fname", "org/name/", "%6frg/name"])
async def test_names_with_slashes_come_plain_or_escaped(path: str) -> None:
    async with stage(listed, models={"org/*": ModelConfig()}) as (_, _, client):
        answer = await client.ask("GET", f"/v1/models/{path}")
        assert (answer.status, answer.json["id"]) == (200, "org/name")


async def test_the_list_is_asked_for_once_in_a_while() -> None:
    async with stage(listed, models={"*": ModelConfig()}) as (upstream, proxy, client):
        catalogue = proxy.worker.app.pipeline._catalogue
        now_s = [1000.0]
        catalogue._clock = lambda: now_s[0]
        for seconds, requests in ((0.0, 1), (59.9, 1), (0.2, 2), (30.0, 2)):
            now_s[0] += seconds
            assert await names(client) == sorted(LISTED)
            assert len(upstream.requests) == requests


FAILURES = {
    "hangs up": b"",
    "an error": response(b'{"error":{}}', status=500),
    "no list": response(b'{"models":["a"]}'),
    "no JSON": response(b"<html>"),
    "not even HTTP": b"garbage\r\n\r\n",
    "cut short": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 99\r\n\r\n" + b'{"data":[{"id":"a"}]}',
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_an_upstream_that_fails_costs_its_part_of_the_list(failure: bytes) -> None:
    async with AnsweringUpstream(lambda _: failure) as bad, AnsweringUpstream(listed) as good:
        upstreams = {"bad": upstream_config(bad.url), "good": upstream_config(good.url)}
        models = {
            "bad-*": ModelConfig(routes=(RouteConfig(upstream="bad"),)),
            "gpt-*": ModelConfig(routes=(RouteConfig(upstream="good"),)),
            "configured": ModelConfig(routes=(RouteConfig(upstream="bad"),)),
        }
        async with running(upstreams, models=models) as proxy, await RecordingClient.connect(proxy.port) as client:
            assert await names(client) == ["configured", "gpt-4o", "gpt-4o-mini"]
            assert await names(client) == ["configured", "gpt-4o", "gpt-4o-mini"]
            assert len(bad.requests) == 1, "it is left alone for a while"
            assert (await proxy.exchange(2))["outcome"] == "ok"


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_a_list_that_was_good_outlives_a_failure(failure: bytes) -> None:
    answers = [listing(*LISTED)]
    async with stage(lambda _: answers[-1], models={"gpt-*": ModelConfig()}) as (upstream, proxy, client):
        assert await names(client) == ["gpt-4o", "gpt-4o-mini"]
        age(proxy.worker.app.pipeline._catalogue)
        answers.append(failure)
        assert await names(client) == ["gpt-4o", "gpt-4o-mini"]
        asked = len(upstream.requests)
        assert asked > 1
        assert await names(client) == ["gpt-4o", "gpt-4o-mini"]
        assert len(upstream.requests) == asked, "it is left alone for a while"


async def test_a_list_that_comes_too_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_phase, "_PATIENCE_S", 0.5)
    models = {"gpt-*": ModelConfig(), "mine": ModelConfig()}
    with RawUpstream() as upstream:
        url = f"http://127.0.0.1:{upstream.port}"
        async with running(url, models=models) as proxy, await RecordingClient.connect(proxy.port) as client:
            for begun in (b"", b"HTTP/1.1 200 OK\r\n", b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"data":['):
                age(proxy.worker.app.pipeline._catalogue)
                client.send("GET", "/v1/models")
                peer = await upstream.accept()
                await peer.answer(begun)
                assert [model["id"] for model in (await client.answer()).json["data"]] == ["mine"]
                await peer.ended()


async def test_connecting_is_part_of_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_phase, "_PATIENCE_S", 0.1)
    with FullListener() as upstream:
        up = {"up": upstream_config(f"http://127.0.0.1:{upstream.port}", timeouts=TimeoutsConfig(connect=600.0))}
        models = {"gpt-*": ModelConfig(), "mine": ModelConfig()}
        async with running(up, models=models) as proxy, await RecordingClient.connect(proxy.port) as client:
            assert await asyncio.wait_for(names(client), LONG_S) == ["mine"]


async def test_a_slow_upstream_keeps_what_it_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with HoldingUpstream() as upstream:
        upstream.released.set()
        async with (
            running(upstream.url, models={"gpt-*": ModelConfig()}) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert await names(client) == ["gpt-4o", "gpt-4o-mini"]
            age(proxy.worker.app.pipeline._catalogue)
            upstream.released.clear()
            monkeypatch.setattr(models_phase, "_PATIENCE_S", 0.1)
            assert await names(client) == ["gpt-4o", "gpt-4o-mini"]
            assert len(upstream.requests) == 2


async def test_many_who_ask_at_once_make_one_question() -> None:
    async with HoldingUpstream() as upstream, running(upstream.url) as proxy, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await RecordingClient.connect(proxy.port)) for _ in range(50)]
        asking = [asyncio.ensure_future(names(client)) for client in clients]
        await until(lambda: len(proxy.worker.app.live) == 50 and upstream.requests, "all of them wait")
        upstream.released.set()
        assert await asyncio.gather(*asking) == [sorted(LISTED)] * 50
        assert len(upstream.requests) == 1


async def test_who_leaves_takes_the_list_from_nobody() -> None:
    """Neither from one who waits for the same answer, nor from one who comes later."""
    async with (
        HoldingUpstream() as upstream,
        running(upstream.url) as proxy,
        await RecordingClient.connect(proxy.port) as leaving,
        await RecordingClient.connect(proxy.port) as staying,
    ):
        live = proxy.worker.app.live
        leaving.send("GET", "/v1/models")
        await until(lambda: upstream.requests, "the upstream is asked")
        await leaving.reset()
        await until(lambda: len(live) == 0, "the first is gone")
        staying.send("GET", "/v1/models")
        await until(lambda: len(live) == 1, "the second waits")
        upstream.released.set()
        assert [model["id"] for model in (await staying.answer()).json["data"]] == sorted(LISTED)
        assert len(upstream.requests) == 1
        assert (await proxy.exchange(1))["outcome"] == "client_gone"


async def test_upstreams_are_asked_at_the_same_time() -> None:
    async with HoldingUpstream() as first, HoldingUpstream() as second:
        upstreams = {"first": upstream_config(first.url), "second": upstream_config(second.url)}
        models = {
            "gpt-*": ModelConfig(routes=(RouteConfig(upstream="first"),)),
            "o1*": ModelConfig(routes=(RouteConfig(upstream="second"),)),
        }
        async with running(upstreams, models=models) as proxy, await RecordingClient.connect(proxy.port) as client:
            client.send("GET", "/v1/models")
            await until(lambda: first.requests and second.requests, "both are asked before either answered")
            first.released.set()
            second.released.set()
            assert [model["id"] for model in (await client.answer()).json["data"]] == ["gpt-4o", "gpt-4o-mini", "o1"]


async def test_a_bracket_in_a_name_is_no_pattern() -> None:
    async with stage(listed, models={"llama[8b]": ModelConfig()}) as (upstream, _, client):
        assert await names(client) == ["llama[8b]"]
        assert upstream.requests == []


async def test_names_an_upstream_lists_but_does_not_serve_are_not_shown() -> None:
    """Two upstreams list each other's names; each name is shown once, for the one that serves it."""
    async with AnsweringUpstream(listed) as first, AnsweringUpstream(listed) as second:
        upstreams = {"first": upstream_config(first.url), "second": upstream_config(second.url)}
        models = {
            "gpt-*": ModelConfig(routes=(RouteConfig(upstream="first"),)),
            "o*": ModelConfig(routes=(RouteConfig(upstream="second"),)),
        }
        async with running(upstreams, models=models) as proxy, await RecordingClient.connect(proxy.port) as client:
            assert await names(client) == ["gpt-4o", "gpt-4o-mini", "o1", "org/name"]


@pytest.mark.parametrize("wanted", ["m", "a/b", "a%2Fb"])
async def test_one_model_has_the_shape_of_the_list(wanted: str) -> None:
    routes: Iterable[str] = ("m", "a/b")
    at = upstream()  # nothing is asked: both names are configured
    table = {name: model(at) for name in routes}
    catalogue = Catalogue(Router(at, PatternTable(table), table), BackgroundTasks())
    alone = json.loads(await catalogue.answer(arrived(method="GET", path=f"/models/{wanted}"), principal()))
    everything = json.loads(await catalogue.answer(arrived(method="GET", path="/models"), principal()))
    assert alone in everything["data"]
    assert list(alone) == ["id", "object", "created", "owned_by"]
