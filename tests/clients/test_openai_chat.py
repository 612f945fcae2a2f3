"""The newest openai-python, asynchronous: an application that changes its base URL and its key notices nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tests.fakes.questions import ASK, CHAT_TOOLS, all_same, same

if TYPE_CHECKING:
    import openai

    from proxy.simulator.server import Simulator
    from tests.fakes.running import Running


async def test_a_streamed_chat_is_what_it_would_be_without_sluice(
    client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI
) -> None:
    async def chunks(sdk: openai.AsyncOpenAI) -> list[object]:
        stream = await sdk.chat.completions.create(
            model="sim-fast-80t-split-7", messages=ASK, stream=True, n=2, stream_options={"include_usage": True}
        )
        return all_same([chunk async for chunk in stream])

    through = await chunks(client)
    assert len(through) > 160
    assert through == await chunks(direct)


async def test_a_chat_that_is_not_streamed_is_what_it_would_be_without_sluice(
    client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI
) -> None:
    through, straight = [
        await sdk.chat.completions.create(model="sim-fast-60t", messages=ASK) for sdk in (client, direct)
    ]
    assert through.choices[0].message.content
    assert through.usage is not None
    assert same(through) == same(straight)


async def test_streamed_tool_calls_arrive_piece_by_piece_and_add_up(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=CHAT_TOOLS, stream=True)
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    pieces = 0
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
            pieces += 1
    assert names == {0: "look_up", 1: "weather"}
    assert json.loads(arguments[0]).keys() == {"where", "limit"}
    assert json.loads(arguments[1]) == {"deep": True}
    assert pieces > 4


async def test_tool_calls_that_are_not_streamed(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    through, straight = [
        await sdk.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=CHAT_TOOLS)
        for sdk in (client, direct)
    ]
    assert [call.type for call in through.choices[0].message.tool_calls or ()] == ["function", "function"]
    assert same(through) == same(straight)


async def test_the_stream_helper_of_chat_assembles_the_answer(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="sim-fast", messages=ASK)
    async with client.chat.completions.stream(
        model="sim-fast", messages=ASK, stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage == whole.usage


async def test_the_stream_helper_of_chat_assembles_tool_calls(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="sim-fast-tools", messages=ASK, tools=CHAT_TOOLS) as stream:
        done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = await stream.get_final_completion()
    assert [event.name for event in done] == ["look_up", "weather"]
    assert final.choices[0].finish_reason == "tool_calls"


async def test_an_agent_loop_runs_to_its_answer(client: openai.AsyncOpenAI) -> None:
    first = await client.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=CHAT_TOOLS)
    said = first.choices[0].message
    calls = said.tool_calls or []
    messages = [
        *ASK,
        said.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "42"} for call in calls),
    ]
    second = await client.chat.completions.create(
        model="sim-fast-tools",
        messages=messages,  # type: ignore[arg-type]  # the SDK's parameter types do not take its own answers
        tools=CHAT_TOOLS,
    )
    assert len(calls) == 2
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


async def test_a_refusal_comes_as_a_refusal(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="sim-fast-refusal", messages=ASK, stream=True)
    refused = [chunk.choices[0].delta.refusal async for chunk in stream]
    assert "".join(filter(None, refused))


async def test_completions_streamed_and_not(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="sim-fast", prompt="Once")
    stream = await client.completions.create(model="sim-fast", prompt="Once", stream=True)
    pieces = [chunk.choices[0].text async for chunk in stream]
    assert whole.choices[0].text
    assert "".join(pieces) == whole.choices[0].text
    assert same(whole) == same(await direct.completions.create(model="sim-fast", prompt="Once"))


async def test_embeddings_in_both_encodings(client: openai.AsyncOpenAI) -> None:
    base64 = await client.embeddings.create(model="text-embedding-3-small", input=["sea", "海"], dimensions=64)
    floats = await client.embeddings.create(
        model="text-embedding-3-small", input=["sea", "海"], dimensions=64, encoding_format="float"
    )
    assert [len(item.embedding) for item in base64.data] == [64, 64]
    for one, other in zip(base64.data, floats.data, strict=True):
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding, strict=True))
    assert base64.usage == floats.usage


async def test_models_are_listed_and_retrieved(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert "sim-fast" in listed
    assert (await client.models.retrieve("sim-fast")).id == "sim-fast"


async def test_raw_responses_show_the_headers_of_upstream_and_sluice(
    client: openai.AsyncOpenAI, sluice: Running
) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="sim-fast", messages=ASK)
    assert raw.headers["x-request-id"].startswith("req_")  # the upstream's own
    assert raw.headers["openai-version"] == "2020-10-01"
    completion = raw.parse()
    assert completion._request_id == raw.headers["x-request-id"]
    line = await sluice.exchange()
    assert line["id"] == raw.headers["x-sluice-id"]


async def test_raw_responses_of_a_stream_can_be_read_and_parsed(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="sim-fast", messages=ASK, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["x-accel-buffering"] == "no"
    chunks = [chunk async for chunk in raw.parse()]
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_streaming_responses_give_the_lines_of_the_wire(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.with_streaming_response.create(
        model="sim-fast", messages=ASK, stream=True
    ) as response:
        assert response.headers["x-sluice-id"].startswith("sl_")
        lines = [line async for line in response.iter_lines()]
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines if line)


async def test_many_streams_at_once_through_one_client_do_not_mix(
    client: openai.AsyncOpenAI, simulator: Simulator
) -> None:
    async def said(number: int) -> str:
        stream = await client.completions.create(model=f"sim-1ms-{number + 1}t", prompt="count", stream=True)
        chunks = [chunk async for chunk in stream]
        assert {chunk.model for chunk in chunks} == {f"sim-1ms-{number + 1}t"}
        assert len({chunk.id for chunk in chunks}) == 1
        return chunks[0].id

    ids = await asyncio.gather(*(said(number) for number in range(30)))
    assert len(set(ids)) == 30
    assert simulator.stats.completed == 30
