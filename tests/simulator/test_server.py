"""The simulator as the official SDK sees it, and what it counts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import openai
import pytest

from proxy.simulator.answers import pieces_of
from proxy.simulator.server import MODEL_HELP, Simulator
from tests.fakes.client import RecordingClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai.types.chat import ChatCompletionMessageParam

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say this is a test"}]
LOOKUP: dict[str, Any] = {
    "name": "look_up",
    "parameters": {
        "type": "object",
        "properties": {"where": {"type": "string", "enum": ["sea", "land"]}, "limit": {"type": "integer"}},
    },
}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
}
CHAT_TOOLS: Any = [{"type": "function", "function": tool} for tool in (LOOKUP, WEATHER)]
ARGUMENTS = {"look_up": {"where": "sea", "limit": 1}, "weather": {"deep": True}}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulator = Simulator()
    await simulator.start()
    yield simulator
    await simulator.close()


@pytest.fixture
async def sdk(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=simulator.url, api_key="sk-any", max_retries=0) as client:
        yield client


async def test_streamed_and_whole_chat_say_the_same_and_count_the_same(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model="sim-fast", messages=ASK)
    stream = await sdk.chat.completions.create(
        model="sim-fast", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    assert texts == pieces_of("".join(texts))
    assert "No model is running here" in "".join(texts)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    # the count recorded from OpenAI for this very prompt
    assert whole.usage.prompt_tokens == 12
    assert whole.usage.completion_tokens == len(texts)
    assert whole.usage.total_tokens == 12 + len(texts)


async def test_prompts_change_the_text_and_are_not_quoted(sdk: openai.AsyncOpenAI) -> None:
    texts = set()
    for word in ("aardvark", "zebra", "quokka", "gnu", "ibex", "newt", "puma", "stoat"):
        answer = await sdk.chat.completions.create(model="sim-fast", messages=[{"role": "user", "content": word}])
        text = answer.choices[0].message.content
        assert text is not None
        assert word not in text
        assert any(len(character.encode()) >= 3 for character in text)
        texts.add(text)
    assert len(texts) > 3


async def test_the_maximum_cuts_the_answer(sdk: openai.AsyncOpenAI) -> None:
    for limit in ({"max_tokens": 4}, {"max_completion_tokens": 4}):
        answer = await sdk.chat.completions.create(model="sim-9t-fast", messages=ASK, extra_body=limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
    exact = await sdk.chat.completions.create(model="sim-9t-fast", messages=ASK, max_completion_tokens=9)
    assert exact.choices[0].finish_reason == "stop"


async def test_choices_take_turns_and_are_all_counted(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="sim-3t-fast", messages=ASK, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    order = [choice.index for chunk in chunks for choice in chunk.choices]
    assert order == [0, 1] * 5  # a role, three pieces and a finish reason for each
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_a_stop_text_ends_the_answer_before_it(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="sim-fast", messages=ASK, stop=[" Sluice", "never"])
    assert answer.choices[0].message.content == "Hello from the"
    assert answer.choices[0].finish_reason == "stop"


async def test_a_refusal_streams_in_its_own_member(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(model="sim-3t-fast-refusal", messages=ASK, stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(delta.refusal or "" for delta in deltas) == "Hello from the"
    assert not any(delta.content for delta in deltas)


async def test_tools_are_called_in_parallel_and_streamed_by_pieces(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=CHAT_TOOLS, stream=True)
    chunks = [chunk async for chunk in stream]
    names: dict[int, str] = {}
    arguments: dict[int, str] = {0: "", 1: ""}
    for call in (call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()):
        assert call.function is not None
        if call.id:
            assert call.index not in names
            assert call.function.name is not None
            names[call.index] = call.function.name
            assert call.function.arguments == ""
        arguments[call.index] += call.function.arguments or ""
    assert {names[index]: json.loads(text) for index, text in arguments.items()} == ARGUMENTS
    assert chunks[0].choices[0].delta.content is None
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_who_decides_about_tools(sdk: openai.AsyncOpenAI) -> None:
    async def called(model: str, **request: Any) -> list[str]:
        answer = await sdk.chat.completions.create(
            model=model, messages=request.pop("messages", ASK), tools=CHAT_TOOLS, **request
        )
        return [call.function.name for call in answer.choices[0].message.tool_calls or () if call.type == "function"]

    results = [*ASK, {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"}]
    named = {"type": "function", "function": {"name": "weather"}}
    assert await called("sim-fast-tools") == ["look_up", "weather"]
    assert await called("sim-fast-tools", parallel_tool_calls=False) == ["look_up"]
    assert await called("sim-fast-tools", messages=results) == []
    assert await called("sim-fast-tools", tool_choice="none") == []
    assert await called("sim-fast") == []
    assert await called("sim-fast", tool_choice="required") == ["look_up", "weather"]
    assert await called("sim-fast", tool_choice=named) == ["weather"]


async def test_legacy_completions(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.completions.create(model="sim-4t-fast", prompt=["one", "two words"], n=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 16)
    stream = await sdk.completions.create(
        model="sim-4t-fast", prompt=[1, 2, 3], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 4)


async def test_embeddings_are_unit_vectors_equal_for_equal_inputs(sdk: openai.AsyncOpenAI) -> None:
    both = await sdk.embeddings.create(model="any", input=["a cat", "a dog"], dimensions=16)  # the SDK asks for base64
    again = await sdk.embeddings.create(model="any", input="a dog", dimensions=16, encoding_format="float")
    assert both.data[1].embedding == pytest.approx(again.data[0].embedding)
    assert both.data[0].embedding != pytest.approx(both.data[1].embedding)
    assert math.hypot(*both.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert (len(both.data[0].embedding), both.usage.prompt_tokens, both.usage.total_tokens) == (16, 4, 4)


async def test_responses_streamed_and_whole(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.responses.create(model="sim-6t-fast", input="Say this is a test", instructions="Be brief")
    async with sdk.responses.stream(model="sim-6t-fast", input="Say this is a test", instructions="Be brief") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == whole.output_text == "Hello from the Sluice simulator"
    assert final.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert whole.usage is not None
    assert whole.usage.output_tokens == sum(event.type == "response.output_text.delta" for event in events)


async def test_responses_cut_short_and_refused(sdk: openai.AsyncOpenAI) -> None:
    cut = await sdk.responses.create(model="sim-6t-fast", input="hi", max_output_tokens=2)
    assert (cut.status, cut.output_text) == ("incomplete", "Hello from")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    stream = await sdk.responses.create(model="sim-2t-fast-refusal", input="hi", stream=True)
    refused = [event.delta async for event in stream if event.type == "response.refusal.delta"]
    assert refused == ["Hello", " from"]


async def test_responses_call_tools(sdk: openai.AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "strict": False, **tool} for tool in (LOOKUP, WEATHER)]
    async with sdk.responses.stream(model="sim-fast-tools", input="hi", tools=tools) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    called = {item.name: json.loads(item.arguments) for item in final.output if item.type == "function_call"}
    assert called == ARGUMENTS


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    assert "sim-fast" in [model.id async for model in sdk.models.list()]
    assert (await sdk.models.retrieve("org/any-name")).id == "org/any-name"
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("sim-fsat")


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
async def test_an_error_status_is_raised_as_its_class(
    sdk: openai.AsyncOpenAI, status: int, raised: type[openai.APIStatusError]
) -> None:
    with pytest.raises(raised) as caught:
        await sdk.chat.completions.create(model=f"sim-error-{status}", messages=ASK, stream=True)
    assert caught.value.status_code == status
    assert (caught.value.response.headers.get("retry-after") == "1") == (status == 429)


async def test_names_with_unknown_words_are_told_the_known_ones(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="flood-<size>") as caught:
        await sdk.chat.completions.create(model="sim-fast-bogus", messages=ASK)
    assert caught.value.param == "model"
    assert "flood-<size>" in MODEL_HELP


async def test_a_client_that_leaves_ends_the_generation(simulator: Simulator, sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(model="sim-9000t-1ms", messages=ASK, stream=True)
    await anext(aiter(stream))
    assert simulator.stats.open == 1
    await stream.close()
    await simulator.stats.wait_idle()
    assert simulator.stats.shown() == {"requests": 1, "completed": 0, "failed": 0, "aborted": 1, "open": 0}


async def test_the_counters_are_served(simulator: Simulator, sdk: openai.AsyncOpenAI) -> None:
    await sdk.chat.completions.create(model="sim-1t-fast", messages=ASK)
    with pytest.raises(openai.InternalServerError):
        await sdk.chat.completions.create(model="sim-error-500", messages=ASK)
    client = await RecordingClient.connect(simulator.port)
    answer = await client.ask("GET", "/stats")
    await client.close()
    assert answer.json == {"requests": 2, "completed": 1, "failed": 1, "aborted": 0, "open": 0}
