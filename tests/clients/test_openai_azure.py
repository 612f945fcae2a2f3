"""The Azure client of the newest openai-python: its own paths, its own header for the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from tests.fakes.answering import AnsweringUpstream
from tests.fakes.questions import ASK
from tests.fakes.running import KEY, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.running import Running


def _azure(proxy: Running, key: str = KEY) -> openai.AsyncAzureOpenAI:
    return openai.AsyncAzureOpenAI(
        azure_endpoint=proxy.url.removesuffix("/v1"), api_key=key, api_version="2025-04-01-preview", max_retries=0
    )


@pytest.fixture
async def azure(sluice: Running) -> AsyncIterator[openai.AsyncAzureOpenAI]:
    async with _azure(sluice) as client:
        yield client


async def test_chat_streamed_and_not(azure: openai.AsyncAzureOpenAI) -> None:
    whole = await azure.chat.completions.create(model="sim-fast", messages=ASK)
    stream = await azure.chat.completions.create(model="sim-fast", messages=ASK, stream=True)
    said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == whole.choices[0].message.content


async def test_embeddings_and_responses(azure: openai.AsyncAzureOpenAI) -> None:
    embedded = await azure.embeddings.create(model="text-embedding-3-small", input="sea", dimensions=8)
    answered = await azure.responses.create(model="sim-fast", input="Hello")
    assert len(embedded.data[0].embedding) == 8
    assert answered.output_text


async def test_a_wrong_key_raises_authentication_error(sluice: Running) -> None:
    async with _azure(sluice, "no-such-key-0000") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="sim", messages=ASK)


async def test_the_clients_key_stays_here_and_the_version_goes_on() -> None:
    async with AnsweringUpstream() as upstream, running(upstream.url) as proxy, _azure(proxy) as client:
        await client.chat.completions.create(model="gpt-4o", messages=ASK)
    target, _, rest = upstream.requests[0].partition(b"\r\n")
    assert target == b"POST /v1/chat/completions?api-version=2025-04-01-preview HTTP/1.1"
    assert KEY.encode() not in rest
