"""The newest openai-python on /responses: streamed, whole, with tools, through its helpers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import openai
import pytest

from tests.fakes.questions import RESPONSES_TOOLS, all_same, same

if TYPE_CHECKING:
    from openai.types.responses import ResponseStreamEvent


async def _events(sdk: openai.AsyncOpenAI, model: str) -> list[ResponseStreamEvent]:
    stream = await sdk.responses.create(model=model, input="Say this is a test", stream=True)
    return [event async for event in stream]


async def test_a_streamed_response_is_what_it_would_be_without_sluice(
    client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI
) -> None:
    through = await _events(client, "sim-fast-100t-split-5")
    assert [event.sequence_number for event in through] == list(range(len(through)))
    assert through[-1].type == "response.completed"
    assert all_same(through) == all_same(await _events(direct, "sim-fast-100t-split-5"))


async def test_a_response_that_is_not_streamed(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    through, straight = [await sdk.responses.create(model="sim-fast", input="Hello") for sdk in (client, direct)]
    assert through.output_text
    assert same(through) == same(straight)


async def test_the_stream_helper_of_responses_assembles_the_answer(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="sim-fast", input="Hello") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text
    assert final.usage is not None


async def test_function_calls_of_responses_streamed_and_not(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(model="sim-fast-tools", input="Hello", tools=RESPONSES_TOOLS)
    stream = await client.responses.create(model="sim-fast-tools", input="Hello", tools=RESPONSES_TOOLS, stream=True)
    streamed = [event async for event in stream if event.type == "response.function_call_arguments.done"]
    calls = [item for item in whole.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["look_up", "weather"]
    assert [event.arguments for event in streamed] == [call.arguments for call in calls]
    assert json.loads(calls[1].arguments) == {"deep": True}


async def test_an_upstream_that_dies_in_a_response_raises_our_message(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="sim-fast-reset-after-4", input="Hello", stream=True)
    seen = [await anext(stream) for _ in range(4)]
    with pytest.raises(openai.APIError, match="upstream") as raised:
        await anext(stream)
    assert [event.sequence_number for event in seen] == [0, 1, 2, 3]
    assert raised.value.code == "upstream_protocol_error"
    assert raised.value.type == "server_error"


async def test_a_response_without_its_ending_is_no_finished_response(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError, match="before the answer was finished"):
        await _events(client, "sim-fast-stop-after-6")


async def test_the_stream_helper_of_responses_raises_our_message(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError, match="before the answer was finished"):
        async with client.responses.stream(model="sim-fast-stop-after-6", input="Hello") as stream:
            await stream.until_done()


async def test_an_error_inside_the_upstreams_response_passes_with_its_message(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError, match="The server had an error"):
        await _events(client, "sim-fast-error-event-after-4")
