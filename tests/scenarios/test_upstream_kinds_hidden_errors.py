"""Errors that upstreams tell of within a 200: no success in any figure, and never hidden from the client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from proxy.config.settings import RetriesConfig
from tests.fakes.answering import response
from tests.fakes.examples import staged
from tests.fakes.questions import ASK
from tests.fakes.recordings import CHAT, DONE
from tests.fakes.running import KEY
from tests.fakes.usage_recordings import event, said

_ONCE: dict[str, Any] = {"retries": RetriesConfig(attempts=1)}
_ERROR = {"error": {"message": "EngineCore died", "code": 500}}
_MODELS = {"vllm": "qwen", "gemini": "gemini-2.5-flash", "mistral": "mistral-small-latest"}


def streamed(*parts: bytes) -> bytes:
    return response(b"".join(parts), content_type="text/event-stream")


@pytest.mark.parametrize("end", [b"", DONE], ids=["end", "done"])
async def test_an_error_event_of_the_upstream_is_no_success(end: bytes) -> None:
    """The client's SDK raises it."""
    answer = streamed(said("Hi"), event(_ERROR), end)
    async with staged("vllm", lambda _: answer, _ONCE) as (_, proxy, client):
        await client.ask("POST", CHAT, {"model": _MODELS["vllm"], "stream": True, "messages": []})
        line = await proxy.exchange()
        assert (line["outcome"], line.get("blame")) == ("upstream_error", "upstream")


async def test_a_200_whose_body_is_an_error_is_no_success_and_costs_nothing() -> None:
    """Not streamed (OpenRouter)."""
    body = b'{"error":{"message":"Provider returned error","code":502},"user_id":"u"}'
    async with staged("openrouter", lambda _: response(body), _ONCE) as (_, proxy, client):
        await client.ask("POST", CHAT, {"model": "openai/gpt-4o-mini", "messages": []})
        line = await proxy.exchange()
        assert (line["outcome"], line["cost_usd"], line["input_tokens"]) == ("upstream_error", 0, 0)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("gemini", [{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}]),
        ("mistral", {"object": "error", "message": "internal", "type": "x", "code": "3700"}),
    ],
)
@pytest.mark.parametrize("end", [b"", DONE], ids=["end", "done"])
async def test_an_error_that_sdks_do_not_look_for_is_told_in_their_words(kind: str, error: Any, end: bytes) -> None:
    """They look for `error` in an object alone: to them the stream looks finished."""
    answer = streamed(said("Hi"), event(error), end)

    async def read(sdk: openai.AsyncOpenAI) -> None:
        async for _ in await sdk.chat.completions.create(model=_MODELS[kind], messages=ASK, stream=True):
            pass

    async with (
        staged(kind, lambda _: answer, _ONCE) as (_, proxy, _client),
        openai.AsyncOpenAI(base_url=proxy.url, api_key=KEY, max_retries=0) as sdk,
    ):
        with pytest.raises(openai.APIError):
            await read(sdk)
