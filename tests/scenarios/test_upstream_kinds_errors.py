"""How each kind of upstream fails, before its answer and within it: the client is told, in a way that SDKs raise.

A status passes with its body; a stream that fails ends with an error, the upstream's own or, where nobody would see
that, one of Sluice's.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest

from proxy.config.settings import RetriesConfig
from tests.fakes.answering import CHAT_EVENTS, chat, response
from tests.fakes.endings import assert_envelope, assert_told
from tests.fakes.examples import staged
from tests.fakes.framed import framed
from tests.fakes.questions import ASK
from tests.fakes.recordings import CHAT, DONE
from tests.fakes.running import KEY
from tests.fakes.settled import all_rows, nothing_held, settled_row
from tests.fakes.upstream_kinds import KINDS
from tests.fakes.usage_recordings import event, said

if TYPE_CHECKING:
    from collections.abc import Callable

_ONCE: Final[dict[str, Any]] = {"retries": RetriesConfig(attempts=1)}
_MODELS: Final = {kind.example: kind.model for kind in KINDS}
_HI: Final = said("Hi")


def question(example: str, *, stream: bool = True) -> dict[str, Any]:
    return {"model": _MODELS[example], "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}


# example, status, headers, body
_REFUSALS: Final[dict[str, tuple[str, int, dict[str, str], bytes]]] = {
    "gemini, an array": (
        "gemini",
        400,
        {},
        b'[{\n  "error": {\n    "code": 400,\n    "message": "x",\n    "status": "INVALID_ARGUMENT"\n  }\n}\n]\n',
    ),
    "gemini, an array with a wait in it": (
        "gemini",
        429,
        {},
        b'[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"@type":"x","retryDelay":"31s"}]}}]',
    ),
    "mistral, top-level": (
        "mistral",
        429,
        {},
        b'{"object":"error","message":"Service tier capacity exceeded","type":"x","param":null,"code":"3505"}',
    ),
    "mistral, a detail": ("mistral", 401, {}, b'{"detail":"Unauthorized"}'),
    "mistral, details": (
        "mistral",
        422,
        {},
        b'{"object":"error","message":{"detail":[{"type":"missing","loc":["body","messages"]}]},"code":null}',
    ),
    "azure, a day": (
        "azure-classic",
        429,
        {"retry-after": "86400", "retry-after-ms": "86400000", "apim-request-id": "a-1", "x-ms-region": "East US"},
        b'{"error":{"code":"429","message":"Please retry after 86400 seconds."}}',
    ),
    "azure, the prompt's filter": (
        "azure-v1",
        400,
        {},
        b'{"error":{"code":"content_filter","status":400,"innererror":{"content_filter_result":{"hate":{}}}}}',
    ),
    "anthropic, overloaded": (
        "anthropic",
        529,
        {"x-should-retry": "true", "request-id": "req_011"},
        b'{"error":{"code":null,"message":"Overloaded","type":"overloaded_error","param":null}}',
    ),
    "openrouter, credits": (
        "openrouter",
        402,
        {},
        b'{"error":{"message":"Insufficient credits","code":402,"metadata":{}},"user_id":"u"}',
    ),
    "groq, flex": ("groq", 498, {}, b'{"error":{"message":"over capacity","type":"flex_tier_capacity_exceeded"}}'),
    "deepseek, balance": ("deepseek", 402, {}, b'{"error":{"message":"Insufficient Balance","code":"x"}}'),
    "vllm, top-level": (
        "vllm",
        400,
        {},
        b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}',
    ),
    "llama.cpp, loading": (
        "llama.cpp",
        503,
        {},
        b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
    ),
    "ollama, a text": ("ollama", 404, {}, b'{"error":"model \'x\' not found"}'),
    "generalcompute": ("generalcompute", 401, {}, b'{"error":{"message":"bad key","type":"authentication_error"}}'),
}


@pytest.mark.parametrize(("example", "status", "headers", "body"), _REFUSALS.values(), ids=_REFUSALS.keys())
async def test_a_status_passes_as_it_is(example: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """With its body and what support and SDKs go by; nothing is charged, asked for as a stream or not."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with staged(example, lambda _: response(body, status=status, extra=extra), _ONCE) as (_, proxy, client):
        for stream in (True, False):
            answer = await client.ask("POST", CHAT, question(example, stream=stream))
            assert (answer.status, answer.body, answer.whole) == (status, body, True)
            assert {name: answer.header(name) for name in headers} == headers
        for row in (await all_rows(proxy, 2)).values():
            assert (row["outcome"], row["status"], row["grade"]) == ("upstream_error", status, "exact")
            assert row["input_tokens"] == row["output_tokens"] == row["cost_nano_usd"] == 0
        await nothing_held(proxy)


async def test_azures_second_region_serves_when_the_first_says_tomorrow() -> None:
    """The client waits for neither, and the first is left alone from then on."""
    body = b'{"error":{"code":"429","message":"Please retry after 86400 seconds."}}'
    spent = response(body, status=429, extra="retry-after: 86400\r\nretry-after-ms: 86400000\r\n")
    second = b"\r\napi-key: azure-openai-api-key-2-0123456789\r\n"
    async with staged("azure-classic", lambda request: chat(request) if second in request else spent) as (
        upstream,
        proxy,
        client,
    ):
        for _ in range(2):
            answer = await client.ask("POST", CHAT, question("azure-classic"))
            assert (answer.status, answer.body) == (200, CHAT_EVENTS)
        rows = await all_rows(proxy, 2)
        assert [second in request for request in upstream.requests] == [False, True, True]
        assert [rows[line["id"]]["attempts"] for line in proxy.exchanges] == [2, 1]


# example, what the upstream streams before its clean end, how much of it the client gets before an error of Sluice's;
# None: the upstream's own error is one that SDKs raise, so all of it and nothing more
_FAILURES: Final[dict[str, tuple[str, bytes, bytes | None]]] = {
    "openrouter, beside choices": (
        "openrouter",
        b": OPENROUTER PROCESSING\n\n"
        + _HI
        + event(
            {
                "error": {"code": 502, "message": "Provider disconnected", "metadata": {}},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            }
        ),
        None,
    ),
    "vllm, a number for a code": (
        "vllm",
        _HI + event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}) + DONE,
        None,
    ),
    "ollama, a text": ("ollama", _HI + event({"error": "llama runner has terminated"}), None),
    "anthropic, overloaded": (
        "anthropic",
        _HI + event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error"),
        None,
    ),
    "ollama, swallowed": ("ollama", _HI + said(""), _HI + said("")),
    "llama.cpp, a field of its own": ("llama.cpp", _HI + b'error: {"code":500,"message":"x"}\n\n' + DONE, _HI),
    "groq, in its own object": (
        "groq",
        _HI + said("", x_groq={"error": "over capacity"}),
        _HI + said("", x_groq={"error": "over capacity"}),
    ),
    "mistral, top-level": (
        "mistral",
        _HI + event({"object": "error", "message": "internal", "type": "x", "code": "3700"}),
        _HI + event({"object": "error", "message": "internal", "type": "x", "code": "3700"}),
    ),
    "generalcompute, a detail": (
        "generalcompute",
        _HI + event({"detail": "gone"}),
        _HI + event({"detail": "gone"}),
    ),
    "deepseek, waiting and then nothing": ("deepseek", b": keep-alive\n\n" * 3, b": keep-alive\n\n" * 3),
    "azure, the start alone": (
        "azure-classic",
        event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}),
        event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}),
    ),
}


def streaming(stream: bytes) -> Callable[[bytes], bytes]:
    return lambda _: framed(stream, "chunked", random.Random(1))


@pytest.mark.parametrize(("example", "stream", "shown"), _FAILURES.values(), ids=_FAILURES.keys())
async def test_a_stream_that_fails(example: str, stream: bytes, shown: bytes | None) -> None:
    """The client gets whole events and then an error; the SDK raises it, whoever said it."""
    async with staged(example, streaming(stream), _ONCE) as (_, proxy, client):
        answer = await client.ask("POST", CHAT, question(example))
        if shown is None:
            assert (answer.body, answer.whole) == (stream, True)
        else:
            assert_told(answer, shown, "upstream_protocol_error")
            assert (await proxy.exchange())["outcome"] == "upstream_protocol_error"
        row = await settled_row(proxy)
        assert row["grade"] == "counted"
        quickly_made = openai.DefaultAsyncHttpxClient(verify=False, trust_env=False)  # reads no certificates
        async with openai.AsyncOpenAI(base_url=proxy.url, api_key=KEY, max_retries=0, http_client=quickly_made) as sdk:
            said_so_far = []
            with pytest.raises(openai.APIError):  # noqa: PT012 - it may come with any event
                async for part in await sdk.chat.completions.create(model=_MODELS[example], messages=ASK, stream=True):
                    said_so_far += [choice.delta.content for choice in part.choices or []]
        assert "".join(filter(None, said_so_far)) == ("Hi" if _HI in stream else "")


_ERROR_BODIES: Final = {
    "openrouter": b'{"error":{"message":"Provider returned error","code":502},"user_id":"u"}',
    "gemini": b'[{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}]',
    "deepseek": b'\n\n\n{"error":{"message":"no machine","code":"x"}}',
    "vllm": b'{"object":"error","message":"x","code":400}',
    "ollama": b'{"error":"text"}',
}


@pytest.mark.parametrize(("example", "body"), _ERROR_BODIES.items(), ids=_ERROR_BODIES.keys())
async def test_200_with_an_error_for_a_body(example: str, body: bytes) -> None:
    """In place of a stream it is a 502, since SDKs would show an empty answer. Without a stream it passes as it is."""
    async with staged(example, lambda _: response(body), _ONCE) as (_, proxy, client):
        answer = await client.ask("POST", CHAT, question(example))
        assert_envelope(answer, 502, "upstream_not_a_stream")
        answer = await client.ask("POST", CHAT, question(example, stream=False))
        assert (answer.status, answer.body, answer.whole) == (200, body, True)
        rows = await all_rows(proxy, 2)
        streamed, plain = (rows[line["id"]] for line in proxy.exchanges)
        assert (streamed["outcome"], streamed["grade"]) == ("upstream_not_a_stream", "exact")
        assert streamed["cost_nano_usd"] == streamed["input_tokens"] == plain["output_tokens"] == 0
