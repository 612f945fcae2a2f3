"""The kinds of upstreams that `deploy/examples` configures: servers that behave as each of them does.

`KINDS` has what each answers with a stream and without (protocol.md sections 5 and 5.1). How it wants to be asked is
checked here: a request with another path, credential or model gets 404.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.fakes.answering import response
from tests.fakes.framed import framed
from tests.fakes.recordings import DONE
from tests.fakes.usage_recordings import event, plain, said

if TYPE_CHECKING:
    from collections.abc import Callable

_ASKS: Final = b'"include_usage":true'


class Streams(NamedTuple):
    """What a kind streams: to who asks for usage, and to who does not.

    `shown` is what the client gets who did not ask; None: as `unasked`.
    """

    asked: bytes
    unasked: bytes
    shown: bytes | None = None


class Kind(NamedTuple):
    """An upstream behind the example of this name.

    `target` and `headers` (in lower case) are how it wants to be asked for `served`, which clients call `model`.
    `refusal` is its answer to `stream_options` where it knows none. `whole` is an answer without a stream. `tokens` are
    those of input and output, `cached` is part of the input.
    """

    example: str
    model: str
    target: bytes
    headers: tuple[bytes, ...]
    streams: Streams
    whole: bytes
    tokens: tuple[int, int]
    cached: int = 0
    served: str | None = None
    refusal: bytes | None = None
    is_priced: bool = True


def behaving(kind: Kind, end: bytes = b"\n") -> Callable[[bytes], bytes]:
    """What it answers to a request: streams with these line ends, in chunks that are cut anywhere."""
    draw = random.Random(kind.example)

    def answer(request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        first, _, headers = head.partition(b"\r\n")
        lines = headers.lower().split(b"\r\n")
        if first != b"POST %b HTTP/1.1" % kind.target or any(want not in lines for want in kind.headers):
            return response(b'{"error":{"message":"no such door"}}', status=404)
        asked = json.loads(body)
        if asked["model"] != (kind.served or kind.model):
            return response(b'{"error":{"message":"no such model"}}', status=404)
        if "stream_options" in asked and kind.refusal is not None:
            return response(kind.refusal, status=422)
        if not asked.get("stream"):
            return response(kind.whole)
        stream = kind.streams.asked if _ASKS in body else kind.streams.unasked
        return framed(stream.replace(b"\n", end), "chunked", draw)

    return answer


def _telling(*chunks: bytes, usage: bytes) -> Streams:
    """As OpenAI tells of usage: a null on each chunk and the figures in one of its own; unasked, neither."""
    asked = b"".join(chunk[:-3] + b',"usage":null}\n\n' for chunk in chunks)
    return Streams(asked + usage + DONE, b"".join(chunks) + DONE)


def _always(*events: bytes) -> Streams:
    """The same to everybody."""
    stream = b"".join(events) + DONE
    return Streams(stream, stream)


def _choice(delta: dict[str, Any], finish: str | None = None, **members: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **members}]})


def _figures(usage: dict[str, Any], **members: Any) -> bytes:
    """An event of usage alone."""
    return event({"id": "chatcmpl-1", "choices": [], "usage": usage, **members})


def _whole(usage: dict[str, Any], message: dict[str, Any] | None = None, **members: Any) -> bytes:
    """An answer without a stream, spaced as no JSON writer of ours would."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"} | (message or {}), "finish_reason": "stop"}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}
    return json.dumps(body | members, indent=3).encode() + b"\n"


def _call(call_id: str) -> dict[str, Any]:
    """A tool call that comes whole, in one delta."""
    function = {"name": "get_weather", "arguments": '{"city": "Le\\u00f3n"}'}
    return {"tool_calls": [{"index": 0, "id": call_id, "type": "function", "function": function}]}


def _bearer(name: str, *more: bytes) -> tuple[bytes, ...]:
    return (b"authorization: bearer %b-api-key-0123456789" % name.encode(), *more)


_AZURE: Final = _telling(
    event({"id": "", "created": 0, "model": "", "prompt_filter_results": [{"prompt_index": 0}], "choices": []}),
    said("Hi", content_filter_results={}),
    said(None, "stop"),
    event({"id": "", "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"end_offset": 9}}]}),
    usage=_figures(plain(9, 2)),
)
_AZURE_WHOLE: Final = _whole(plain(9, 2), prompt_filter_results=[{"prompt_index": 0}])
_AZURE_DOOR: Final = (b"api-key: azure-openai-api-key-0123456789",)
_THOUGHT: Final = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 40}
_HITS: Final = plain(17, 4, prompt_cache_hit_tokens=16, prompt_cache_miss_tokens=1)
_TIMINGS: Final = {"prompt_ms": 24.5, "predicted_per_second": 40.8163}
_LLAMA_CPP: Final = said("x") + said(None, "stop")
_VLLM: Final = (
    _choice({"reasoning": "hm", "reasoning_content": "hm"}, token_ids=None)
    + said(".")
    + _choice({"content": ""}, "stop", stop_reason=151645)
)
_OLLAMA: Final = _choice({"role": "assistant", "reasoning": "Hm"}) + said("", "stop")
_OF_GROQ: Final = {"id": "req_1", "usage": plain(41, 2, queue_time=0.018)}

KINDS: Final = (
    Kind(
        "openai",
        "gpt-4o-mini",
        b"/v1/chat/completions",
        _bearer("openai"),
        _telling(
            said("Th\u00e9", obfuscation="yK"),
            said(None, "stop", obfuscation="Q"),
            usage=_figures(plain(12, 3, prompt_tokens_details={"cached_tokens": 8}), obfuscation="p"),
        ),
        _whole(plain(12, 3, prompt_tokens_details={"cached_tokens": 8}), service_tier="default"),
        (12, 3),
        cached=8,
    ),
    Kind(
        "azure-classic",
        "gpt-4o-mini",
        b"/openai/deployments/gpt-4o-mini/chat/completions?api-version=2024-10-21",
        _AZURE_DOOR,
        _AZURE,
        _AZURE_WHOLE,
        (9, 2),
    ),
    Kind(
        "azure-v1",
        "gpt-4o-mini",
        b"/openai/v1/chat/completions?api-version=v1",
        _AZURE_DOOR,
        _AZURE,
        _AZURE_WHOLE,
        (9, 2),
        served="prod-gpt-4o-mini",
    ),
    Kind(
        "openrouter",
        "openai/gpt-4o-mini",
        b"/api/v1/chat/completions",
        _bearer("openrouter", b"http-referer: https://example.com", b"x-title: example"),
        _always(
            b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n",
            said("Hi", provider="Groq"),
            b": OPENROUTER PROCESSING\n\n",
            said("", "stop", native_finish_reason="stop"),
            _figures({**plain(9, 1), "cost": 0.00014, "cost_details": {"upstream_inference_cost": None}}),
        ),
        _whole({**plain(9, 1), "cost": 0.00014}, provider="Groq"),
        (9, 1),
    ),
    Kind(
        "anthropic",
        "claude-haiku-4-5",
        b"/v1/chat/completions",
        _bearer("anthropic"),
        _telling(
            said("Hi"),
            said(None, "stop"),
            usage=_figures(plain(30, 2, prompt_tokens_details={}, completion_tokens_details={})),
        ),
        _whole(plain(30, 2, prompt_tokens_details={}), logprobs=None),
        (30, 2),
    ),
    Kind(
        "gemini",
        "gemini-2.5-flash",
        b"/v1beta/openai/chat/completions",
        _bearer("gemini"),
        _always(
            said("A", usage=plain(4, 1)),
            event({"choices": [{"index": 0, "delta": _call("")}], "usage": plain(4, 2)}),
            said(" C", "stop", usage=_THOUGHT),
        ),
        _whole(_THOUGHT),
        (4, 36),
    ),
    Kind(
        "groq",
        "llama-3.3-70b-versatile",
        b"/openai/v1/chat/completions",
        _bearer("groq"),
        _telling(
            said("Hi", x_groq={"id": "req_1"}),
            said(None, "stop", x_groq=_OF_GROQ),
            usage=_figures(plain(41, 2, prompt_time=0.0021), x_groq=_OF_GROQ),
        ),
        _whole(plain(41, 2, queue_time=0.018), x_groq={"id": "req_1"}),
        (41, 2),
    ),
    Kind(
        "mistral",
        "mistral-small-latest",
        b"/v1/chat/completions",
        _bearer("mistral"),
        _always(
            _choice({"content": [{"type": "text", "text": "Oui"}]}),
            _choice(_call("D681PevKs")),
            said("", "tool_calls", usage=plain(5, 2)),
        ),
        _whole(plain(5, 2), {"content": [{"type": "text", "text": "Oui"}]}),
        (5, 2),
        refusal=b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}',
    ),
    Kind(
        "deepseek",
        "deepseek-chat",
        b"/v1/chat/completions",
        _bearer("deepseek"),
        _telling(
            b": keep-alive\n\n\n: keep-alive\n\n" + _choice({"content": None, "reasoning_content": "Hm, \u4f60"}),
            b"\n\n: keep-alive\n\n" + said("Hi"),
            said("", "stop"),
            usage=_figures(_HITS),
        ),
        b"\n\n\n" + _whole(_HITS, {"reasoning_content": "Hm"}),
        (17, 4),
        cached=16,
    ),
    Kind(
        "vllm",
        "qwen",
        b"/v1/chat/completions",
        _bearer("vllm"),
        Streams(_VLLM + _figures(plain(7, 3)) + DONE, _VLLM + DONE),  # no `"usage":null`: it leaves out what is unset
        _whole(plain(7, 3), {"reasoning": "hm"}, prompt_logprobs=None, kv_transfer_params=None),
        (7, 3),
        served="Qwen/Qwen3-8B",
    ),
    Kind(
        "llama.cpp",
        "any",
        b"/v1/chat/completions",
        (),
        _always(_LLAMA_CPP, _figures(plain(11, 1), timings=_TIMINGS))._replace(shown=_LLAMA_CPP + DONE),
        _whole(plain(11, 1), timings=_TIMINGS),
        (11, 1),
    ),
    Kind(
        "ollama",
        "small",
        b"/v1/chat/completions",
        (),
        Streams(_OLLAMA + _figures(plain(26, 8)) + DONE, _OLLAMA + DONE),
        _whole(plain(26, 8), {"reasoning": "Hm"}, system_fingerprint="fp_ollama"),
        (26, 8),
        served="llama3.2:3b",
    ),
    Kind(
        "generalcompute",
        "any",
        b"/v1/chat/completions",
        (b"authorization: bearer general-compute-api-key-0123456789",),
        _telling(said("Hi"), said(None, "stop"), usage=_figures(plain(6, 2))),
        _whole(plain(6, 2)),
        (6, 2),
        is_priced=False,
    ),
)
