"""What the SDK tests ask, and how two answers to the same question are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openai.types.chat import ChatCompletionMessageParam
    from pydantic import BaseModel

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say this is a test, with a sea: 海"}]
_LOOK_UP: dict[str, Any] = {
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"where": {"type": "string"}, "limit": {"type": "integer"}}},
}
_WEATHER: dict[str, Any] = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
}
# the SDK's parameter types do not take plain dictionaries
CHAT_TOOLS: Any = [{"type": "function", "function": tool} for tool in (_LOOK_UP, _WEATHER)]
RESPONSES_TOOLS: Any = [{"type": "function", "strict": False, **tool} for tool in (_LOOK_UP, _WEATHER)]

# made anew for every answer
_DRAWN = frozenset({"id", "created", "created_at", "item_id", "call_id"})


def same(answer: BaseModel) -> Any:
    """An answer without what differs between two runs."""
    return _without_drawn(answer.model_dump(mode="json"))


def all_same(answers: Iterable[BaseModel]) -> list[Any]:
    """A list of answers, or of events, without what differs between two runs."""
    return [same(answer) for answer in answers]


def _without_drawn(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_drawn(member) for name, member in value.items() if name not in _DRAWN}
    if isinstance(value, list):
        return [_without_drawn(member) for member in value]
    return value
