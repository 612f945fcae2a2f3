"""Simulated answers in the shape of /responses (protocol.md section 1.4).

Every event has an `event:` line and a sequence number, usage comes inside the last one, and there is no [DONE].
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from proxy.simulator.answers import completion_tokens
from proxy.simulator.chat import Event
from proxy.simulator.models import Telling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxy.simulator.answers import Ask, Call, Choice


def responses_error_events(error: dict[str, Any], sequence_number: int) -> Iterator[Event]:
    """How a stream tells an error after it has begun: nested, as the live API was seen to send it."""
    shown = {"type": "error", "error": error, "sequence_number": sequence_number}
    yield Event(msgspec.json.encode(shown), name="error")


def responses_answer(ask: Ask, choices: Sequence[Choice], created: int) -> dict[str, Any]:
    """An answer that is not streamed; there is but one choice."""
    return _Response(ask, choices[0], created).finished()


def responses_events(ask: Ask, choices: Sequence[Choice], created: int) -> Iterator[Event]:
    """An answer as a stream, numbered from 0."""
    for number, (name, members, paced) in enumerate(_Response(ask, choices[0], created).events()):
        shown = {"type": name, **members, "sequence_number": number}
        yield Event(msgspec.json.encode(shown), name=name, paced=paced)


class _Response:
    """One `response` object and the events that build it."""

    def __init__(self, ask: Ask, choice: Choice, created: int) -> None:
        self._ask = ask
        self._choice = choice
        self._created = created
        self._id = f"resp_{uuid.uuid4().hex}"
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._kind = "refusal" if choice.refused else "output_text"

    def finished(self) -> dict[str, Any]:
        """The complete object, usage included."""
        cut = self._choice.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        calls = self._choice.calls()
        output = [_call_item(call, arguments, status) for call, arguments in calls] or [self._message(status)]
        return self._shown(status, output, {"reason": "max_output_tokens"} if cut else None, self._usage())

    def events(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Name, members and pace of each event."""
        started = self._shown("in_progress", [], None, None)
        yield "response.created", {"response": started}, False
        yield "response.in_progress", {"response": started}, False
        finished = self.finished()
        if self._choice.calls():
            yield from self._call_events(finished)
        else:
            yield from self._message_events(finished)
        yield f"response.{finished['status']}", {"response": finished}, False

    def _message_events(self, finished: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
        text = self._choice.text
        where = {"content_index": 0, "item_id": self._message_id, "output_index": 0}
        logprobs: dict[str, Any] = {} if self._choice.refused else {"logprobs": []}
        member = "refusal" if self._choice.refused else "text"
        item = self._message("in_progress") | {"content": []}
        yield "response.output_item.added", {"item": item, "output_index": 0}, False
        yield "response.content_part.added", {**where, "part": self._part("")}, False
        for delta in self._choice.deltas:
            yield f"response.{self._kind}.delta", {**where, "delta": delta.text, **logprobs}, True
        yield f"response.{self._kind}.done", {**where, **logprobs, member: text}, False
        yield "response.content_part.done", {**where, "part": self._part(text)}, False
        yield "response.output_item.done", {"item": finished["output"][0], "output_index": 0}, False

    def _call_events(self, finished: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
        arguments_event = "response.function_call_arguments"
        for (call, arguments), item in zip(self._choice.calls(), finished["output"], strict=True):
            where = {"item_id": item["id"], "output_index": call.index}
            opened = _call_item(call, "", "in_progress")
            yield "response.output_item.added", {"item": opened, "output_index": call.index}, True
            for delta in self._choice.deltas:
                if delta.call == call and delta.text:
                    yield f"{arguments_event}.delta", {"delta": delta.text, **where}, True
            yield f"{arguments_event}.done", {"arguments": arguments, "name": call.name, **where}, False
            yield "response.output_item.done", {"item": item, "output_index": call.index}, False

    def _part(self, text: str) -> dict[str, Any]:
        if self._choice.refused:
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def _message(self, status: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "content": [self._part(self._choice.text)],
            "role": "assistant",
        }

    def _usage(self) -> dict[str, Any] | None:
        if self._ask.script.telling is Telling.NEVER:
            return None
        output = completion_tokens([self._choice])
        return {
            "input_tokens": self._ask.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._ask.prompt_tokens + output,
        }

    def _shown(
        self, status: str, output: list[dict[str, Any]], incomplete: dict[str, Any] | None, usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": None,
            "max_output_tokens": self._ask.max_tokens,
            "model": self._ask.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage,
            "metadata": {},
        }


def _call_item(call: Call, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id.removeprefix('call_')}",
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": call.id,
        "name": call.name,
    }
