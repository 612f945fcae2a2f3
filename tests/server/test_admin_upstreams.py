"""Upstreams over the admin API: how they stand, and their drain, which outlasts reloads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from proxy.config.settings import BreakerConfig, ModelConfig, RetriesConfig
from proxy.config.upstreams import RouteConfig
from proxy.config.values import Secret
from tests.fakes.admin import operated, watched
from tests.fakes.answering import CHAT_EVENTS, CHAT_JSON, AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.line import LAST_CHUNK, chunk
from tests.fakes.refusals import GOOD
from tests.fakes.running import upstream_config
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from proxy.config.settings import Config
    from proxy.config.upstreams import UpstreamConfig
    from tests.fakes.admin import Operator


async def until_one_waits(operator: Operator) -> None:
    async def waits() -> bool:
        return bool((await operator.get("/admin/upstreams"))["upstreams"][0]["waiting"])

    await until_asked(waits, "one waits")


async def test_how_an_upstream_stands() -> None:
    async with watched(upstream={"max_concurrency": 1}) as (there, operator):
        peer, _ = await there.begun()
        async with await RecordingClient.connect(there.proxy.port) as second:
            second.send("POST", "/v1/chat/completions", GOOD)

            await until_one_waits(operator)
            found = await operator.get("/admin/upstreams")
            numbers = {
                "drained": False,
                "in_flight": 1,
                "max_concurrency": 1,
                "waiting": 1,
                "circuit": "closed",
                "retry_in_s": 0,
                "credentials": 1,
                "credentials_cooling": 0,
                "connections_open": 1,
                "connections_idle": 0,
            }
            assert found == {
                "upstreams": [{"name": "up", **numbers, "workers": [{"worker": 1, **numbers}]}],
                "no_answer": [],
            }
        peer.close()


async def test_open_circuits_resting_credentials_and_idle_connections_are_shown() -> None:
    def answer(request: bytes) -> bytes:
        if b"one-of-two" in request:
            return response(b'{"error":{"message":"slow down"}}', status=429, extra="retry-after: 60\r\n")
        return response(CHAT_JSON)

    async with AnsweringUpstream(answer) as good:
        two = (Secret("one-of-two-keys"), Secret("other-of-two-keys"))
        upstreams = {
            "limited": upstream_config(good.url, api_keys=two),
            "dead": upstream_config("http://127.0.0.1:1/v1"),
        }
        models = {name: ModelConfig(routes=(RouteConfig(upstream=name),)) for name in upstreams}
        settings = {"retries": RetriesConfig(attempts=2), "breaker": BreakerConfig(failures=1, cooldown=60.0)}
        async with operated(upstreams=upstreams, models=models, settings=settings) as (_, proxy, operator):
            for model in upstreams:
                async with await RecordingClient.connect(proxy.port) as client:
                    await client.ask("POST", "/v1/chat/completions", {"model": model, "messages": []})
            shown = await operator.ask("GET", "/admin/upstreams")
            limited, dead = shown.json["upstreams"]
            assert (limited["circuit"], limited["credentials"], limited["credentials_cooling"]) == ("closed", 2, 1)
            assert (limited["connections_open"], limited["connections_idle"]) == (1, 1)
            assert dead["circuit"] == "open"
            assert 30 < dead["retry_in_s"] <= 60
            assert b"of-two-keys" not in shown.body


async def test_a_drained_upstream_gets_nothing_new_and_is_let_back() -> None:
    async with operated() as (upstream, proxy, operator), await RecordingClient.connect(proxy.port) as client:
        path = "/admin/upstreams/up/drain"
        for _ in range(2):  # asked twice, it is as it is
            told = await operator.does("POST", path, {"drain": True})
            assert told == {"name": "up", "drained": True, "workers": [1], "no_answer": []}
        refused = await client.ask("POST", "/v1/chat/completions", GOOD)
        assert (refused.status, refused.error["code"]) == (503, "no_upstream")
        assert upstream.requests == []
        assert (await operator.get("/admin/upstreams"))["upstreams"][0]["drained"]
        await operator.does("POST", path, {"drain": False})
        assert (await client.ask("POST", "/v1/chat/completions", GOOD)).status == 200
        await until(lambda: len(operator.audit) == 3, "a line for each")
        told = {"action": "upstreams.drain", "outcome": "done", "target": "up", "no_answer": []}
        assert operator.audit == [{**told, "drain": True}, {**told, "drain": True}, {**told, "drain": False}]


async def test_a_drain_lets_streams_end_and_sends_others_elsewhere() -> None:
    async with watched(upstream={"max_concurrency": 1}) as (there, operator):
        peer, answer = await there.begun()
        async with await RecordingClient.connect(there.proxy.port) as waiting:
            waiting.send("POST", "/v1/chat/completions", GOOD)

            await until_one_waits(operator)
            await operator.does("POST", "/admin/upstreams/up/drain", {"drain": True})
            refused = await asyncio.wait_for(waiting.answer(), LONG_S)
            assert (refused.status, refused.error["code"]) == (503, "no_upstream")
        await peer.send(chunk(CHAT_EVENTS) + LAST_CHUNK)
        while await there.piece(answer):
            continue
        assert answer.body == CHAT_EVENTS


@pytest.mark.parametrize("name", ["nobody", "%ff", "UP"])
async def test_an_upstream_that_is_not_there_cannot_be_drained(name: str) -> None:
    async with operated() as (_, _, operator):
        await operator.refused(404, "not_found", "POST", f"/admin/upstreams/{name}/drain", {"drain": True})
        for body in (b"", b'{"drain":1}', b'{"drain":null}', b'{"drained":true}'):
            await operator.refused(400, "invalid_request", "POST", "/admin/upstreams/up/drain", body)


def with_upstreams(config: Config, upstreams: dict[str, UpstreamConfig]) -> Config:
    return msgspec.structs.replace(config, upstreams=upstreams)


async def test_a_drain_outlasts_a_reload() -> None:
    async with operated() as (_, proxy, operator):
        app = proxy.worker.app
        config = app.config

        async def drained(upstreams: dict[str, UpstreamConfig]) -> list[bool]:
            """What is so once these are in force."""
            await app.change_to(await app.prepare(with_upstreams(config, upstreams)))
            return [one["drained"] for one in (await operator.get("/admin/upstreams"))["upstreams"]]

        await operator.does("POST", "/admin/upstreams/up/drain", {"drain": True})
        assert await drained({"up": upstream_config("http://127.0.0.1:1/v1")}) == [True]
        assert await drained({"other": config.upstreams["up"]}) == [False]
        await operator.refused(404, "not_found", "POST", "/admin/upstreams/up/drain", {"drain": False})
        assert await drained(config.upstreams) == [True]
        await operator.does("POST", "/admin/upstreams/up/drain", {"drain": False})
        assert await drained({**config.upstreams, "other": config.upstreams["up"]}) == [False, False]


async def test_a_drain_between_the_two_steps_of_a_reload_is_not_lost() -> None:
    async with operated() as (_, proxy, operator):
        app = proxy.worker.app
        made = await app.prepare(with_upstreams(app.config, {"up": upstream_config("http://127.0.0.1:1/v1")}))
        await operator.does("POST", "/admin/upstreams/up/drain", {"drain": True})
        await app.change_to(made)
        assert [one["drained"] for one in (await operator.get("/admin/upstreams"))["upstreams"]] == [True]
