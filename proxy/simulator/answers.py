"""What a simulated answer says: scripted text and tool calls, cut into deltas, and counted.

The simulator's tokens are *pieces*: a run of at most seven letters or digits, or one other character, each with the
space before it. One piece is one delta of the stream, so `completion_tokens` is the number of deltas that carry output.
Prompts are counted by the same pieces, with the per-message rule of OpenAI's cookbook (protocol.md section 6).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.simulator.models import Script

IMAGE_TOKENS = 85  # an image, sound or file in a prompt: the cookbook's price of a low-detail image
FLOOD_PIECE_BYTES = 4096

_GREETING = (
    "Hello from the Sluice simulator. No model is running here: this text is scripted, whatever you ask. "
    "Your prompt came to {prompt_tokens} tokens by the simulator's own count."
)
_SENTENCES = (  # any four in a row hold characters of two bytes and more
    " A sluice is a gate that lets water through at the pace the channel can take – no faster, no slower.",  # noqa: RUF001 a dash of three bytes in UTF-8 is wanted
    " The words arrive piece by piece, as a model would send them; a café full of clients may watch.",
    " 你好 and 🌊 are here on purpose: in UTF-8 they take three and four bytes, easily cut in half on the way.",
    " The model's name sets the pace and the faults: try sim-slow, sim-tools or sim-error-429.",
    " Nothing you sent is kept, and none of it is quoted here.",
    " Each piece of a stream crosses the socket as one server-sent event.",
    " Leave before the end and the simulator notices and stops: déjà vu (既視感) for those who paid for unread tokens.",
)
_SENTENCES_PER_ANSWER = 4

_PIECE = re.compile(r" ?\w{1,7}| ?[^\w\s]|\s")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the request offers and this answer calls; `parameters` is its JSON Schema."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call of an answer."""

    index: int
    id: str
    name: str


class Delta(NamedTuple):
    """One piece of output. With a `call` the text is part of its arguments; the one that opens the call has none."""

    text: str
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One complete answer: its deltas in order, and why it ends (`stop`, `length` or `tool_calls`)."""

    index: int
    deltas: Sequence[Delta]
    finish_reason: str
    refused: bool = False

    @property
    def text(self) -> str:
        """The whole text, empty where tools are called."""
        return "".join(delta.text for delta in self.deltas if delta.call is None)

    def calls(self) -> list[tuple[Call, str]]:
        """The tool calls in order, each with its arguments as JSON text."""
        arguments: dict[Call, str] = {}
        for text, call in self.deltas:
            if call is not None:
                arguments[call] = arguments.get(call, "") + text
        return list(arguments.items())


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request comes to, whichever endpoint it came by.

    `prompts` is what the texts vary by, one answer set each (several only in legacy completions); `tools` are those
    to be called; `max_tokens` bounds each choice.
    """

    model: str
    script: Script
    stream: bool
    include_usage: bool
    prompts: tuple[str, ...]
    prompt_tokens: int
    choices_per_prompt: int = 1
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()


def pieces_of(text: str) -> list[str]:
    """Cut a text into pieces; joined, they are the text."""
    return _PIECE.findall(text)


def count_messages(messages: Iterable[dict[str, Any]]) -> int:
    """Tokens of a chat prompt: 3 a message, its strings, 1 for a name, 3 for the reply (OpenAI's cookbook)."""
    return 3 + sum(3 + ("name" in message) + sum(map(_count, message.values())) for message in messages)


def count_tools(tools: Sequence[dict[str, Any]] | None) -> int:
    """Tokens of the tools that a request offers: the pieces of their JSON."""
    return len(pieces_of(msgspec.json.encode(tools).decode())) if tools else 0


def _count(value: Any) -> int:
    match value:
        case str():
            return len(pieces_of(value))
        case {"type": "text" | "input_text" | "output_text" | "refusal"}:
            return sum(_count(text) for member, text in value.items() if member != "type")
        case {"type": "image_url" | "input_image" | "input_audio" | "file" | "input_file"}:
            return IMAGE_TOKENS
        case dict():
            return sum(map(_count, value.values()))
        case list():
            return sum(map(_count, value))
        case _:
            return 0


def answer(ask: Ask) -> list[Choice]:
    """All choices of an answer; the same request always gets the same texts."""
    return [
        _choice(ask, index, hashlib.sha256(f"{index}{prompt}".encode()).digest())
        for index, prompt in enumerate(prompt for prompt in ask.prompts for _ in range(ask.choices_per_prompt))
    ]


def completion_tokens(choices: Iterable[Choice]) -> int:
    """What an answer used: its deltas, of all choices."""
    return sum(len(choice.deltas) for choice in choices)


def _choice(ask: Ask, index: int, digest: bytes) -> Choice:
    deltas: Sequence[Delta]
    if ask.tools:
        deltas, reason = _call_deltas(ask.tools, digest), "tool_calls"
    else:
        deltas, reason = _text_deltas(ask, digest), "stop"
    if ask.max_tokens is not None and len(deltas) > ask.max_tokens:
        deltas, reason = deltas[: ask.max_tokens], "length"
    return Choice(index, deltas, reason, refused=ask.script.refuses and not ask.tools)


def _text_deltas(ask: Ask, digest: bytes) -> Sequence[Delta]:
    script = ask.script
    if script.flood_bytes and ask.stream:
        block = "".join(_SENTENCES).encode() * (FLOOD_PIECE_BYTES // 256)
        piece = block[:FLOOD_PIECE_BYTES].decode(errors="ignore")
        return [Delta(piece)] * -(-script.flood_bytes // len(piece.encode()))
    first = digest[0] % len(_SENTENCES)
    sentences = [*_SENTENCES[first:], *_SENTENCES[:first]]
    greeting = _GREETING.format(prompt_tokens=ask.prompt_tokens)
    pieces = pieces_of(greeting + "".join(sentences[:_SENTENCES_PER_ANSWER]))
    if script.answer_tokens is not None:
        more = pieces_of("".join(sentences))
        while len(pieces) < script.answer_tokens:
            pieces += more
        pieces = pieces[: script.answer_tokens]
    if ask.stops:
        pieces = pieces_of(_before_stop("".join(pieces), ask.stops))
    if script.big_bytes:
        pieces = ["x" * script.big_bytes, *pieces]
    return [Delta(piece) for piece in pieces]


def _before_stop(text: str, stops: Iterable[str]) -> str:
    ends = [position for stop in stops if stop and (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _call_deltas(tools: Iterable[Tool], digest: bytes) -> list[Delta]:
    deltas: list[Delta] = []
    for index, tool in enumerate(tools):
        call = Call(index, f"call_{digest.hex()[:22]}{index:02d}", tool.name)
        arguments = msgspec.json.encode(_example(tool.parameters)).decode()
        deltas.append(Delta("", call))
        deltas.extend(Delta(piece, call) for piece in pieces_of(arguments))
    return deltas


def _example(schema: dict[str, Any]) -> Any:
    """A value that fits a JSON Schema closely enough to be parsed by whoever wrote it."""
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object" | None:
            return {name: _example(inner) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema["items"])] if "items" in schema else []
        case "integer":
            return 1
        case "number":
            return 1.5
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "simulated: 你好"
