"""The newest openai-python, synchronous, in a thread beside the proxy's event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import openai
import pytest

from tests.fakes.questions import ASK, CHAT_TOOLS, all_same, same
from tests.fakes.running import KEY
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types.chat import ChatCompletionChunk

    from proxy.simulator.server import Simulator
    from tests.fakes.running import Running


@pytest.fixture
def sdk(sluice: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=sluice.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def direct_sdk(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=simulator.url, api_key="sk-any", max_retries=0) as client:
        yield client


async def test_chat_streamed_and_not_is_what_it_would_be_without_sluice(
    sdk: openai.OpenAI, direct_sdk: openai.OpenAI
) -> None:
    def both(client: openai.OpenAI) -> tuple[object, list[object]]:
        whole = client.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=CHAT_TOOLS)
        with client.chat.completions.create(
            model="sim-fast-80t-crlf", messages=ASK, stream=True, stream_options={"include_usage": True}
        ) as stream:
            return same(whole), all_same(stream)

    whole, chunks = await asyncio.to_thread(both, sdk)
    assert len(chunks) > 80
    assert (whole, chunks) == await asyncio.to_thread(both, direct_sdk)


async def test_the_stream_helpers_assemble_their_answers(sdk: openai.OpenAI) -> None:
    def ask() -> tuple[str | None, str]:
        with sdk.chat.completions.stream(model="sim-fast", messages=ASK) as chat:
            chat.until_done()
        with sdk.responses.stream(model="sim-fast", input="Hello") as responses:
            responses.until_done()
        return chat.get_final_completion().choices[0].message.content, responses.get_final_response().output_text

    assert all(await asyncio.to_thread(ask))


async def test_embeddings_completions_models_and_headers(sdk: openai.OpenAI) -> None:
    def ask() -> None:
        assert len(sdk.embeddings.create(model="any", input="sea", dimensions=16).data[0].embedding) == 16
        assert sdk.completions.create(model="sim-fast", prompt="Once").choices[0].text
        assert "sim-fast" in [model.id for model in sdk.models.list()]
        raw = sdk.chat.completions.with_raw_response.create(model="sim-fast", messages=ASK)
        assert raw.headers["x-sluice-id"].startswith("sl_")
        with sdk.chat.completions.with_streaming_response.create(model="sim-fast", messages=ASK) as response:
            assert response.parse().choices[0].message.content

    await asyncio.to_thread(ask)


async def test_errors_before_and_within_a_stream(sdk: openai.OpenAI) -> None:
    def ask() -> None:
        with pytest.raises(openai.RateLimitError):
            sdk.chat.completions.create(model="sim-error-429", messages=ASK)
        with pytest.raises(openai.AuthenticationError):
            sdk.with_options(api_key="sk-wrong").models.list()
        stream = sdk.chat.completions.create(model="sim-fast-reset-after-3", messages=ASK, stream=True)
        seen: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError, match="upstream"):
            seen.extend(stream)
        assert len(seen) == 3

    await asyncio.to_thread(ask)


async def test_closing_a_stream_aborts_the_upstream(sdk: openai.OpenAI, simulator: Simulator, sluice: Running) -> None:
    def ask() -> None:
        with sdk.chat.completions.create(model="sim-1ms-100000t", messages=ASK, stream=True) as stream:
            next(stream)

    await asyncio.to_thread(ask)
    await until(lambda: simulator.stats.aborted == 1, "the upstream's request aborted")
    assert (await sluice.exchange())["outcome"] == "client_gone"


async def test_the_sdks_timeout_aborts_the_upstream(sdk: openai.OpenAI, simulator: Simulator) -> None:
    def ask() -> None:
        with pytest.raises(openai.APITimeoutError):
            sdk.with_options(timeout=0.2).chat.completions.create(model="sim-ttft-1m", messages=ASK)

    await asyncio.to_thread(ask)
    await until(lambda: simulator.stats.aborted == 1, "the upstream's request aborted")
