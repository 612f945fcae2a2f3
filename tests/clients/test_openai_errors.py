"""The newest openai-python when things go wrong: the exception class an application catches, with what it reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import openai
import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig
from proxy.config.upstreams import TimeoutsConfig
from proxy.config.values import Secret
from tests.fakes.answering import AnsweringUpstream, chat, response
from tests.fakes.questions import ASK
from tests.fakes.running import KEY, running, upstream_config

if TYPE_CHECKING:
    from proxy.simulator.server import Simulator
    from tests.fakes.running import Running


def _sdk(proxy: Running, **settings: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(**{"base_url": proxy.url, "api_key": KEY, "max_retries": 0, **settings})


async def _ask(client: openai.AsyncOpenAI, model: str, **how: Any) -> Any:
    """Ask, and where the answer streams, read it to its end."""
    answer = await client.chat.completions.create(model=model, messages=ASK, **how)
    return [chunk async for chunk in answer] if how.get("stream") else answer


async def test_a_wrong_key_raises_authentication_error_and_is_not_repeated(sluice: Running) -> None:
    async with _sdk(sluice, api_key="sk-wrong-key-000000") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await _ask(client, "sim")
    assert raised.value.code == "invalid_api_key"
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id == raised.value.response.headers["x-sluice-id"]
    assert "sk-wrong" not in raised.value.message


async def test_an_unknown_model_raises_not_found_on_chat_and_bad_request_on_responses(simulator: Simulator) -> None:
    async with running(simulator.url, models={"sim-*": ModelConfig()}) as proxy, _sdk(proxy) as client:
        with pytest.raises(openai.NotFoundError, match="`gpt-9`") as missing:
            await _ask(client, "gpt-9")
        with pytest.raises(openai.BadRequestError) as bad:
            await client.responses.create(model="gpt-9", input="Hello")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-9")
    assert missing.value.code == bad.value.code == "model_not_found"
    assert bad.value.param == "model"


async def test_a_mistake_of_the_request_raises_bad_request_with_its_param(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as options:
        await _ask(client, "sim", stream_options={"include_usage": True})
    with pytest.raises(openai.BadRequestError) as typed:
        await _ask(client, "sim", extra_body={"stream": "yes"})
    with pytest.raises(openai.BadRequestError) as absent:
        await client.post("/chat/completions", body={"messages": ASK}, cast_to=object)
    assert options.value.param == "stream_options"
    assert (typed.value.param, typed.value.code) == ("stream", "invalid_type")
    assert (absent.value.param, absent.value.code) == ("model", "missing_required_parameter")


async def test_a_mistake_that_the_upstream_finds_passes_as_it_says_it(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="sim", messages=[])
    assert raised.value.param == "messages"
    assert raised.value.code == "invalid_value"


async def test_stateful_endpoints_raise_permission_denied_unless_the_plan_has_them(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as raised:
        await client.files.list()
    assert raised.value.code == "endpoint_not_allowed"


async def test_a_model_outside_the_plan_looks_like_an_unknown_one(simulator: Simulator) -> None:
    models = {"sim-fast": ModelConfig(), "gpt-4o": ModelConfig()}
    plans = {"small": PlanConfig(models=("sim-*",))}
    keys = (KeyConfig(id="team-a", secret=Secret(KEY), plan="small"),)
    async with running(simulator.url, models=models, plans=plans, keys=keys) as proxy, _sdk(proxy) as client:
        listed = [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError) as outside:
            await _ask(client, "gpt-4o")
        with pytest.raises(openai.NotFoundError) as unknown:
            await _ask(client, "gpt-9")
    assert listed == ["sim-fast"]
    assert outside.value.message.replace("gpt-4o", "gpt-9") == unknown.value.message


async def test_a_request_over_the_limit_raises_413(simulator: Simulator) -> None:
    async with running(simulator.url, server={"max_request_bytes": 1000}) as proxy, _sdk(proxy) as client:
        with pytest.raises(openai.APIStatusError, match="1000 bytes") as raised:
            await client.chat.completions.create(model="sim", messages=[{"role": "user", "content": "x" * 1000}])
        assert raised.value.status_code == 413
        assert raised.value.code == "request_too_large"
        assert (await _ask(client, "sim-fast")).choices  # the same client goes on


async def test_the_upstreams_429_raises_rate_limit_error_with_its_retry_headers(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as raised:
        await _ask(client, "sim-error-429")
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.type == "requests"
    assert raised.value.response.headers["retry-after-ms"] == "1000"
    assert (raised.value.request_id or "").startswith("req_")


@pytest.mark.parametrize("status", [500, 503, 529])
async def test_the_upstreams_5xx_raises_internal_server_error(client: openai.AsyncOpenAI, status: int) -> None:
    with pytest.raises(openai.InternalServerError, match="Simulated") as raised:
        await _ask(client, f"sim-error-{status}", stream=True)
    assert raised.value.status_code == status


async def test_an_upstream_nobody_listens_at_raises_internal_server_error() -> None:
    async with AnsweringUpstream() as upstream:
        url = upstream.url
    async with running(url) as proxy, _sdk(proxy) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await _ask(client, "gpt-4o")
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_unreachable")
    assert "127.0.0.1" not in raised.value.message


async def test_an_upstream_that_hangs_up_raises_internal_server_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        await _ask(client, "sim-hangup")
    assert raised.value.code == "upstream_protocol_error"


async def test_json_in_place_of_a_stream_raises_where_the_sdk_would_see_an_empty_answer(
    client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI
) -> None:
    assert await _ask(direct, "sim-fast-not-a-stream", stream=True) == []
    with pytest.raises(openai.InternalServerError) as raised:
        await _ask(client, "sim-fast-not-a-stream", stream=True)
    assert raised.value.code == "upstream_not_a_stream"


async def test_an_upstream_slower_than_its_timeout_raises_504(simulator: Simulator) -> None:
    up = upstream_config(simulator.url, timeouts=TimeoutsConfig(first_byte=0.05))
    async with running({"up": up}) as proxy, _sdk(proxy) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await _ask(client, "sim-ttft-1m")
    assert (raised.value.status_code, raised.value.code) == (504, "upstream_timeout")


async def test_the_sdk_repeats_a_429_and_says_so_upstream() -> None:
    answers = iter([response(b'{"error":{"message":"slow"}}', status=429, extra="retry-after-ms: 20\r\n")])
    async with (
        AnsweringUpstream(lambda request: next(answers, None) or chat(request)) as upstream,
        running(upstream.url) as proxy,
        _sdk(proxy, max_retries=1) as client,
    ):
        answer = await _ask(client, "gpt-4o")
    assert answer.choices[0].message.content == "Hi"
    counts = [re.search(rb"x-stainless-retry-count: (\d)", request) for request in upstream.requests]
    assert [count and count[1] for count in counts] == [b"0", b"1"]


async def test_the_sdk_does_not_repeat_what_the_upstream_said_not_to() -> None:
    refused = response(b'{"error":{"message":"no"}}', status=500, extra="x-should-retry: false\r\n")
    async with (
        AnsweringUpstream(lambda _: refused) as upstream,
        running(upstream.url) as proxy,
        _sdk(proxy, max_retries=2) as client,
    ):
        with pytest.raises(openai.InternalServerError):
            await _ask(client, "gpt-4o")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("fault", ["reset", "cut", "garbage", "stop"])
async def test_an_upstream_that_dies_in_a_stream_raises_our_message(client: openai.AsyncOpenAI, fault: str) -> None:
    stream = await client.chat.completions.create(model=f"sim-fast-{fault}-after-5", messages=ASK, stream=True)
    seen = [await anext(stream) for _ in range(5)]
    with pytest.raises(openai.APIError, match="upstream") as raised:
        await anext(stream)
    assert seen[-1].choices[0].delta.content
    assert type(raised.value) is openai.APIError  # an error event, not a broken connection
    assert raised.value.code == "upstream_protocol_error"
    assert raised.value.type == "server_error"


async def test_an_error_inside_the_upstreams_stream_passes_with_its_message(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError, match="The server had an error"):
        await _ask(client, "sim-fast-error-event-after-5", stream=True)


async def test_an_upstream_that_falls_silent_raises_our_message(simulator: Simulator) -> None:
    up = upstream_config(simulator.url, timeouts=TimeoutsConfig(idle=0.05))
    async with running({"up": up}) as proxy, _sdk(proxy) as client:
        with pytest.raises(openai.APIError, match=r"sent nothing for 0\.05 s") as raised:
            await _ask(client, "sim-fast-stall-after-5", stream=True)
    assert raised.value.code == "upstream_timeout"


async def test_half_an_answer_that_is_not_streamed_raises(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIConnectionError):
        await _ask(client, "sim-fast-cut")
