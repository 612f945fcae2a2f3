"""Answers as providers send them when they say what was used (protocol.md sections 1.6 and 5), and what that is.

`STREAMS` and `BODIES` are named; each knows its exact usage.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from proxy.core.usage import Usage
from tests.fakes.recordings import DONE


class Told(NamedTuple):
    """An answer, and the usage that it says; None where it says none that can be believed."""

    body: bytes
    usage: Usage | None


def event(data: object, kind: str = "") -> bytes:
    """One event, compact as providers write it; with its type on a line of its own if it has one."""
    line = b"event: %b\n" % kind.encode() if kind else b""
    return line + b"data: " + json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def typed(kind: str, **members: Any) -> bytes:
    """An event of /v1/responses and its kin."""
    return event({"type": kind, **members}, kind)


def said(text: str | None, finish: str | None = None, index: int = 0, **members: Any) -> bytes:
    """A chunk of chat."""
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **members})


def plain(prompt: int, completion: int, **members: Any) -> dict[str, Any]:
    """A usage object of chat."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **members,
    }


_OPENAI: Final = plain(
    2006,
    300,
    prompt_tokens_details={"cached_tokens": 1920, "cache_write_tokens": 5, "audio_tokens": 3, "image_tokens": 4},
    completion_tokens_details={
        "reasoning_tokens": 256,
        "audio_tokens": 1,
        "accepted_prediction_tokens": 7,
        "rejected_prediction_tokens": 9,
    },
)
_OPENAI_USAGE: Final = Usage(2006, 300, 1920, 5, 3, 4, 256, 1, 7, 9)
_RESPONSES: Final = {
    "input_tokens": 75,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 8},
    "output_tokens": 1186,
    "output_tokens_details": {"reasoning_tokens": 1024},
    "total_tokens": 1261,
}
_RESPONSES_USAGE: Final = Usage(75, 1186, cached_tokens=64, cache_write_tokens=8, reasoning_tokens=1024)
_IMAGES: Final = {
    "input_tokens": 50,
    "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
    "output_tokens": 4160,
    "total_tokens": 4210,
}
_IMAGES_USAGE: Final = Usage(50, 4160, image_input_tokens=40)
_TRANSCRIBED: Final = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    "output_tokens": 45,
    "total_tokens": 59,
}
_TRANSCRIBED_USAGE: Final = Usage(14, 45, audio_input_tokens=14)


def _responses(end: str, usage: object) -> bytes:
    response: dict[str, Any] = {"id": "resp_1", "object": "response", "usage": None, "tools": []}
    return (
        typed("response.created", response=response, sequence_number=0)
        + typed("response.in_progress", response=response, sequence_number=1)
        + typed("response.output_text.delta", output_index=0, content_index=0, delta="Hi", sequence_number=2)
        + typed("response.output_text.done", output_index=0, content_index=0, text="Hi", sequence_number=3)
        + typed(end, response={**response, "usage": usage, "output": [{"content": [{"text": "Hi"}]}]})
    )


STREAMS: Final = {
    "openai": Told(
        said("", usage=None)
        + said("Hi", usage=None)
        + said(None, "stop", usage=None)
        + event({"id": "chatcmpl-1", "choices": [], "usage": _OPENAI, "obfuscation": "x"})
        + DONE,
        _OPENAI_USAGE,
    ),
    "azure": Told(
        event({"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}], "usage": None})
        + said("Hi")
        + said(None, "stop")
        + event({"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 44}}]})
        + event({"choices": [], "usage": plain(9, 2)})
        + DONE,
        Usage(9, 2),
    ),
    "gemini": Told(
        said("A", usage=plain(4, 1)) + said("B", usage=plain(4, 2)) + said(" C", "stop", usage=plain(4, 3)) + DONE,
        Usage(4, 3),
    ),
    "gemini-thinking": Told(
        said("A", "stop", usage={"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}) + DONE,
        Usage(20, 603),
    ),
    "vllm-continuous": Told(
        b"".join(said(f" w{n}", usage=plain(7, n + 1)) for n in range(50))
        + said("", "stop", usage=plain(7, 51))
        + event({"choices": [], "usage": plain(7, 51)})
        + DONE,
        Usage(7, 51),
    ),
    "groq": Told(
        said("Hi", x_groq={"id": "req_1"})
        + said(None, "stop", x_groq={"id": "req_1", "usage": {**plain(41, 2), "queue_time": 0.018}})
        + event({"choices": [], "usage": {**plain(41, 2), "prompt_time": 0.0021}, "x_groq": {"usage": plain(41, 2)}})
        + DONE,
        Usage(41, 2),
    ),
    "groq-unasked": Told(
        said("Hi", x_groq={"id": "req_1"}) + said(None, "stop", x_groq={"usage": plain(41, 2)}) + DONE, Usage(41, 2)
    ),
    "ollama-zeros": Told(
        said("Hi", usage=plain(0, 0)) + said("", "stop", usage=plain(26, 8)) + event({"usage": plain(0, 0)}) + DONE,
        Usage(26, 8),
    ),
    "openrouter": Told(
        b": OPENROUTER PROCESSING\n\n"
        + said("Hi")
        + said("", "stop")
        + said("", usage={**plain(9, 1), "cost": 0.00014, "cost_details": {"upstream_inference_cost": None}})
        + DONE,
        Usage(9, 1),
    ),
    "mistral": Told(
        event({"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "Oui"}]}}]})
        + said("", "stop", usage=plain(5, 2))
        + DONE,
        Usage(5, 2),
    ),
    "deepseek": Told(
        b": keep-alive\n\n"
        + said("Hi")
        + said("", "stop", usage=plain(17, 4, prompt_cache_hit_tokens=16, prompt_cache_miss_tokens=1))
        + DONE,
        Usage(17, 4, cached_tokens=16),
    ),
    "llama.cpp": Told(
        said("x")
        + said(None, "stop")
        + event({"choices": [], "usage": plain(11, 1), "timings": {"prompt_ms": 24.5}})
        + DONE,
        Usage(11, 1),
    ),
    "xai": Told(
        said("Hi", usage={**plain(32, 1), "completion_tokens_details": {"reasoning_tokens": 0}})
        + said("", "stop")
        + event(
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 32,
                    "completion_tokens": 9,
                    "total_tokens": 135,
                    "completion_tokens_details": {"reasoning_tokens": 94},
                },
            }
        )
        + DONE,
        Usage(32, 103, reasoning_tokens=94),
    ),
    "anthropic": Told(
        said("Hi")
        + said(None, "stop", usage=plain(30, 2, cache_creation_input_tokens=20, cache_read_input_tokens=6))
        + DONE,
        Usage(30, 2, cached_tokens=6, cache_write_tokens=20),
    ),
    "floats": Told(
        said("Hi", "stop", usage={"prompt_tokens": 3.0, "completion_tokens": 2.0}).replace(b"3.0", b"3e0") + DONE,
        Usage(3, 2),
    ),
    "responses": Told(_responses("response.completed", _RESPONSES), _RESPONSES_USAGE),
    "responses-incomplete": Told(_responses("response.incomplete", _RESPONSES), _RESPONSES_USAGE),
    "responses-failed": Told(_responses("response.failed", _RESPONSES), _RESPONSES_USAGE),
    "responses-failed-unsaid": Told(_responses("response.failed", None), None),
    "transcription": Told(
        event({"type": "transcript.text.delta", "delta": "I"})
        + event({"type": "transcript.text.done", "text": "I", "usage": _TRANSCRIBED}),
        _TRANSCRIBED_USAGE,
    ),
    "speech": Told(
        event({"type": "speech.audio.delta", "audio": "A" * 4000})
        + event({"type": "speech.audio.done", "usage": {"input_tokens": 8, "output_tokens": 31, "total_tokens": 39}}),
        Usage(8, 31),
    ),
    "images": Told(
        typed("image_generation.partial_image", b64_json="A" * 100_000)
        + typed("image_generation.completed", b64_json="B" * 300_000, usage=_IMAGES),
        _IMAGES_USAGE,
    ),
    "images-small": Told(
        typed("image_edit.completed", b64_json="B" * 3000, usage=_IMAGES, background="opaque"), _IMAGES_USAGE
    ),
}

BODIES: Final = {
    name: Told(json.dumps(body, ensure_ascii=False).encode(), usage)
    for name, body, usage in (
        ("chat", {"choices": [{"index": 0, "message": {"content": "Hi"}}], "usage": _OPENAI}, _OPENAI_USAGE),
        ("completions", {"choices": [{"text": "Hi", "index": 0}], "usage": plain(5, 7)}, Usage(5, 7)),
        ("embeddings", {"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(8, 0)),
        ("responses", {"output": [], "text": {"format": {}}, "usage": _RESPONSES}, _RESPONSES_USAGE),
        ("transcription", {"text": "I", "usage": _TRANSCRIBED}, _TRANSCRIBED_USAGE),
        ("whisper", {"text": "I", "usage": {"type": "duration", "seconds": 7}}, Usage(audio_s=7.0)),
        ("images", {"created": 1, "data": [{"b64_json": "A" * 2000}], "usage": _IMAGES}, _IMAGES_USAGE),
        ("groq", {"choices": [], "usage": plain(41, 2), "x_groq": {"id": "req_1"}}, Usage(41, 2)),
        ("openrouter-error", {"error": {"code": 502, "message": "down"}, "choices": []}, None),
        ("gemini-error", [{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}], None),
        ("placeholder", {"choices": [], "usage": plain(0, 0)}, None),
    )
}
