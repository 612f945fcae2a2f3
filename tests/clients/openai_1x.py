"""The core checks with openai-python 1.x, run by its own interpreter: prints what each check saw, as one JSON object.

test_other_sdks.py runs it and judges. BASE_URL and KEY come from the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import openai

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ASK: Any = [{"role": "user", "content": "Say this is a test, with a sea: 海"}]
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}}}
TOOLS: Any = [{"type": "function", "function": WEATHER}]
RESPONSES_TOOLS: Any = [{"type": "function", "strict": False, **WEATHER}]


async def chat(client: openai.AsyncOpenAI) -> Any:
    answer = await client.chat.completions.create(model="sim-fast", messages=ASK)
    return {"text": answer.choices[0].message.content, "total_tokens": answer.usage and answer.usage.total_tokens}


async def chat_streamed(client: openai.AsyncOpenAI) -> Any:
    stream = await client.chat.completions.create(
        model="sim-fast", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    usage = chunks[-1].usage
    return {"text": text, "total_tokens": usage and usage.total_tokens}


async def chat_helper(client: openai.AsyncOpenAI) -> Any:
    async with client.chat.completions.stream(model="sim-fast", messages=ASK) as stream:
        answer = await stream.get_final_completion()
    return answer.choices[0].message.content


async def tools(client: openai.AsyncOpenAI) -> Any:
    answer = await client.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=TOOLS)
    calls: Any = answer.choices[0].message.tool_calls or []
    return [[call.function.name, call.function.arguments] for call in calls]


async def tools_streamed(client: openai.AsyncOpenAI) -> Any:
    stream = await client.chat.completions.create(model="sim-fast-tools", messages=ASK, tools=TOOLS, stream=True)
    calls: dict[int, list[str]] = {}
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            said = calls.setdefault(call.index, ["", ""])
            said[0] += (call.function and call.function.name) or ""
            said[1] += (call.function and call.function.arguments) or ""
    return list(calls.values())


async def responses(client: openai.AsyncOpenAI) -> Any:
    return (await client.responses.create(model="sim-fast", input="Hello")).output_text


async def responses_streamed(client: openai.AsyncOpenAI) -> Any:
    events: Any = [event async for event in await client.responses.create(model="sim-fast", input="Hello", stream=True)]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return {"text": text, "last": events[-1].type, "numbers": [event.sequence_number for event in events]}


async def responses_tools(client: openai.AsyncOpenAI) -> Any:
    answer: Any = await client.responses.create(model="sim-fast-tools", input="Hello", tools=RESPONSES_TOOLS)
    return [[call.name, call.arguments] for call in answer.output]


async def embeddings(client: openai.AsyncOpenAI) -> Any:
    answer = await client.embeddings.create(model="text-embedding-3-small", input=["sea", "海"], dimensions=16)
    return [len(item.embedding) for item in answer.data]


async def completions(client: openai.AsyncOpenAI) -> Any:
    stream = await client.completions.create(model="sim-fast", prompt="Once", stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def models(client: openai.AsyncOpenAI) -> Any:
    return [model.id async for model in client.models.list()] + [(await client.models.retrieve("sim-slow")).id]


async def headers(client: openai.AsyncOpenAI) -> Any:
    raw = await client.chat.completions.with_raw_response.create(model="sim-fast", messages=ASK)
    return {"sluice_id": raw.headers["x-sluice-id"], "request_id": raw.parse()._request_id}


async def _failure(asked: Awaitable[Any]) -> Any:
    """What an application catches. `seen` counts the parts of a stream that came before."""
    seen = 0
    try:
        answer = await asked
        if hasattr(answer, "__aiter__"):
            async for _ in answer:
                seen += 1
    except openai.APIError as error:
        status = getattr(error, "status_code", None)
        shown = {"status": status, "code": error.code, "param": error.param, "message": error.message}
        return {"class": type(error).__name__, "seen": seen, **shown}
    return {"class": None, "seen": seen}


async def failures(client: openai.AsyncOpenAI) -> Any:
    ask = client.chat.completions.create
    return {
        "wrong key": await _failure(client.with_options(api_key="sk-wrong-key").models.list()),
        "unknown model": await _failure(ask(model="gpt-9", messages=ASK)),
        "unknown model of a response": await _failure(client.responses.create(model="gpt-9", input="Hello")),
        "stream options": await _failure(ask(model="sim", messages=ASK, stream_options={"include_usage": True})),
        "stateful": await _failure(client.files.list()),
        "rate limit": await _failure(ask(model="sim-error-429", messages=ASK)),
        "upstream's 500": await _failure(ask(model="sim-error-500", messages=ASK, stream=True)),
        "hang-up": await _failure(ask(model="sim-hangup", messages=ASK)),
        "no stream": await _failure(ask(model="sim-fast-not-a-stream", messages=ASK, stream=True)),
        "reset": await _failure(ask(model="sim-fast-reset-after-5", messages=ASK, stream=True)),
        "cut": await _failure(ask(model="sim-fast-cut-after-5", messages=ASK, stream=True)),
        "truncated": await _failure(ask(model="sim-fast-stop-after-5", messages=ASK, stream=True)),
        "error event": await _failure(ask(model="sim-fast-error-event-after-5", messages=ASK, stream=True)),
        "reset response": await _failure(
            client.responses.create(model="sim-fast-reset-after-5", input="Hello", stream=True)
        ),
    }


async def aborts(client: openai.AsyncOpenAI) -> Any:
    """Two streams closed, and one request that the client gave up before its first byte."""
    chat_stream = await client.chat.completions.create(model="sim-1ms-100000t", messages=ASK, stream=True)
    await anext(aiter(chat_stream))
    await chat_stream.close()
    response_stream = await client.responses.create(model="sim-1ms-100000t", input="Hello", stream=True)
    await anext(aiter(response_stream))
    await response_stream.close()
    try:
        await client.with_options(timeout=0.3).chat.completions.create(model="sim-ttft-1m", messages=ASK)
    except openai.APITimeoutError:
        return 3
    return 2


CHECKS: tuple[Callable[[openai.AsyncOpenAI], Awaitable[Any]], ...] = (
    chat,
    chat_streamed,
    chat_helper,
    tools,
    tools_streamed,
    responses,
    responses_streamed,
    responses_tools,
    embeddings,
    completions,
    models,
    headers,
    failures,
    aborts,
)


async def main() -> None:
    async with openai.AsyncOpenAI(
        base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"], max_retries=0, timeout=20
    ) as client:
        saw = {check.__name__: await check(client) for check in CHECKS}
    print(json.dumps({"language": "python", "version": openai.__version__, **saw}))


if __name__ == "__main__":
    asyncio.run(main())
