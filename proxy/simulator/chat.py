"""Simulated answers in the shapes of /chat/completions, /completions and /embeddings (protocol.md sections 1.1 to 1.3).

Members stand in the order OpenAI was recorded sending them. `obfuscation` is left out.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from proxy.simulator.answers import completion_tokens
from proxy.simulator.models import Telling
from proxy.simulator.requests import EmbeddingBody, count_input, inputs_of, read_body

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxy.simulator.answers import Ask, Choice, Delta
    from proxy.simulator.models import Script

_DEFAULT_DIMENSIONS = {"text-embedding-3-large": 3072}
_FINGERPRINT = "fp_simulator"


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `paced` ones carry output, and wait for the model's pace."""

    data: bytes
    name: str | None = None
    paced: bool = False

    def encode(self, line_end: bytes = b"\n") -> bytes:
        """The event's bytes, its blank line included."""
        head = b"" if self.name is None else b"event: " + self.name.encode() + line_end
        return head + b"data: " + self.data + line_end + line_end


DONE = Event(b"[DONE]")


def error_events(error: dict[str, Any], _sent: int) -> Iterator[Event]:
    """How a chat or completions stream tells an error after it has begun (protocol.md section 1.2)."""
    yield Event(msgspec.json.encode({"error": error}))
    yield DONE


def _usage_of(ask: Ask, output: int) -> dict[str, Any]:
    """The `usage` object of chat and completions, `output` tokens into the answer."""
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": ask.prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat_answer(ask: Ask, choices: Sequence[Choice], created: int) -> dict[str, Any]:
    """A chat answer that is not streamed."""
    shown = []
    for choice in choices:
        calls = [_call(call.id, call.name, arguments) for call, arguments in choice.calls()]
        message = {
            "role": "assistant",
            "content": None if calls or choice.refused else choice.text,
            **({"tool_calls": calls} if calls else {}),
            "refusal": choice.text if choice.refused else None,
            "annotations": [],
        }
        shown.append(
            {"index": choice.index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}
        )
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": created,
        "model": ask.model,
        "choices": shown,
        **_whole_usage(ask, choices),
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }


def chat_events(ask: Ask, choices: Sequence[Choice], created: int) -> Iterator[Event]:
    """A chat answer as a stream: roles, deltas (choices take turns), finish reasons, usage if asked for, [DONE]."""
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": ask.model,
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }

    def chunk(
        choice: Choice, delta: dict[str, Any], finish_reason: str | None, output: int, *, paced: bool = False
    ) -> Event:
        shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _chunk(head, ask, [shown], output, paced=paced)

    for choice in choices:
        content = None if choice.calls() else ""
        yield chunk(choice, {"role": "assistant", "content": content, "refusal": None}, None, 0)
    for output, (choice, delta) in enumerate(_turns(choices), 1):
        yield chunk(choice, _chat_delta(choice, delta), None, output, paced=True)
    for choice in choices:
        yield chunk(choice, {}, choice.finish_reason, completion_tokens(choices))
    yield from _ending(head, ask, choices)


def completion_answer(ask: Ask, choices: Sequence[Choice], created: int) -> dict[str, Any]:
    """A legacy completion that is not streamed."""
    shown = [_completion_choice(choice, choice.text, choice.finish_reason) for choice in choices]
    return {**_completion_head(ask, created), "choices": shown, **_whole_usage(ask, choices)}


def completion_events(ask: Ask, choices: Sequence[Choice], created: int) -> Iterator[Event]:
    """A legacy completion as a stream: the same object as without, a piece of text in each."""
    head = _completion_head(ask, created)
    for output, (choice, delta) in enumerate(_turns(choices), 1):
        yield _chunk(head, ask, [_completion_choice(choice, delta.text, None)], output, paced=True)
    for choice in choices:
        yield _chunk(head, ask, [_completion_choice(choice, "", choice.finish_reason)], completion_tokens(choices))
    yield from _ending(head, ask, choices)


def embedding_answer(raw: bytes) -> tuple[Script, dict[str, Any]]:
    """Embeddings: unit vectors made from a hash of each input, equal for equal inputs. Raises `SimulatedError` 400."""
    body, script = read_body(raw, EmbeddingBody)
    dimensions = body.dimensions or _DEFAULT_DIMENSIONS.get(body.model, 1536)
    inputs = inputs_of(body.input)
    data = []
    for index, value in enumerate(inputs):
        packed = _unit_vector(f"{body.model}\n{value}", dimensions)
        as_base64 = body.encoding_format == "base64"
        shown = base64.b64encode(packed).decode() if as_base64 else struct.unpack(f"<{dimensions}f", packed)
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(map(count_input, inputs))
    usage = {} if script.telling is Telling.NEVER else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return script, {"object": "list", "data": data, "model": body.model, **usage}


def _whole_usage(ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
    """What says the usage in an answer that is not streamed."""
    return {} if ask.script.telling is Telling.NEVER else {"usage": _usage_of(ask, completion_tokens(choices))}


def _chunk(head: dict[str, Any], ask: Ask, shown: list[dict[str, Any]], output: int, *, paced: bool = False) -> Event:
    """A chunk of a stream that has sent so many output tokens with it."""
    usage: dict[str, Any] = {}
    if ask.script.telling is Telling.EACH:
        usage = {"usage": _usage_of(ask, output)}
    elif _tells_at_end(ask):
        usage = {"usage": None}
    return Event(msgspec.json.encode({**head, "choices": shown, **usage}), paced=paced)


def _ending(head: dict[str, Any], ask: Ask, choices: Sequence[Choice]) -> Iterator[Event]:
    if _tells_at_end(ask):
        usage = _usage_of(ask, completion_tokens(choices))
        yield Event(msgspec.json.encode({**head, "choices": [], "usage": usage}))
    yield DONE


def _tells_at_end(ask: Ask) -> bool:
    return ask.include_usage and ask.script.telling is Telling.OPENAI


def _turns(choices: Sequence[Choice]) -> Iterator[tuple[Choice, Delta]]:
    """Every delta of every choice, the choices taking turns."""
    for row in itertools.zip_longest(*(choice.deltas for choice in choices)):
        yield from ((choice, delta) for choice, delta in zip(choices, row, strict=True) if delta is not None)


def _chat_delta(choice: Choice, delta: Delta) -> dict[str, Any]:
    call = delta.call
    if call is None:
        return {"refusal" if choice.refused else "content": delta.text}
    if not delta.text:
        return {"tool_calls": [{"index": call.index, **_call(call.id, call.name, "")}]}
    return {"tool_calls": [{"index": call.index, "function": {"arguments": delta.text}}]}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _completion_head(ask: Ask, created: int) -> dict[str, Any]:
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": created, "model": ask.model}


def _completion_choice(choice: Choice, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": choice.index, "logprobs": None, "finish_reason": finish_reason}


def _unit_vector(seed: str, dimensions: int) -> bytes:
    """`dimensions` little-endian 32-bit floats of length one: the form in which OpenAI encodes base64 embeddings."""
    raw = struct.unpack(f"<{dimensions}i", hashlib.shake_256(seed.encode()).digest(4 * dimensions))
    length = math.sqrt(sum(value * value for value in raw))
    return struct.pack(f"<{dimensions}f", *(value / length for value in raw))
