"""What the JSON of an answer says: decoding it, and finding the output text in it (protocol.md sections 1 and 5).

One struct serves chunks of chat, whole chats, responses and their events, transcriptions: decoding reads the members
that matter and skips the rest, many events in one call.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, Final, NamedTuple

import msgspec

from proxy.core.json_walk import JsonWalk
from proxy.core.sse import parse_events

_DONE: Final = b"[DONE]"
_DONE_EVENT: Final = b"data: [DONE]\n\n"
_BETWEEN_NAMED: Final = re.compile(rb"\n\nevent: [^\n]*\ndata: ")

# Any two line ends in a row but CR LF are a line end and a blank line (WHATWG HTML section 9.2.5).
PAIRS: Final = (b"\n\n", b"\r\r", b"\n\r")

# Where an event has what matters of it, if it is too large to be decoded.
_PATHS: Final = (("type",), ("usage",), ("response", "usage"), ("response", "background"), ("x_groq", "usage"))

# Large events of these kinds repeat text that came before, or hold none that the model wrote.
_REPEATS: Final = (".done", ".created", ".queued", ".in_progress", ".completed", ".incomplete", ".failed", ".cancelled")


class Function(msgspec.Struct, gc=False):
    """What a tool call calls: in a stream the name comes once, the arguments (or a custom tool's input) in pieces."""

    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """A tool call or a piece of one; `index` tells parallel calls of a stream apart."""

    index: int | None = None
    function: Function | None = None
    custom: Function | None = None


class Audio(msgspec.Struct, gc=False):
    """Spoken output: `transcript` is its text, `data` the sound in base64."""

    transcript: str | None = None
    data: str | None = None


class Message(msgspec.Struct, gc=False):
    """A choice's delta, or its message where the answer is not streamed. Mistral's content may be a list of parts."""

    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    audio: Audio | None = None


class Choice(msgspec.Struct, gc=False):
    """One of the alternatives that were asked for; `text` is that of legacy completions."""

    index: int | None = None
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class Holder(msgspec.Struct, gc=False):
    """An object within which usage may stand: `response` of a responses event, `x_groq`.

    `background`: the response is made whether anybody listens or not.
    """

    usage: Any = None
    background: Any = None


class Item(msgspec.Struct, gc=False):
    """An output item of a response, as an event announces it; a function call has a name."""

    name: str | None = None


class Said(msgspec.Struct, gc=False):
    """One event, or one body."""

    type: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None
    response: Holder | None = None
    x_groq: Holder | None = None
    delta: Any = None
    item: Item | None = None
    output_index: int | None = None
    error: Any = None
    text: Any = None
    output: Any = None
    status: Any = None


class Events(NamedTuple):
    """The events of a block. `done`: there was a `[DONE]`. `faults`: so many events had data that is not JSON."""

    said: list[Said]
    done: bool
    faults: int


class LargeEvent:
    """An event that is too large to be held: its JSON is walked over as it flows, by the fragment.

    `is_complete`: its blank line was seen.
    """

    __slots__ = ("_seam", "_walk", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._seam = b""  # the last byte so far, which may be half of the boundary
        self._walk = JsonWalk(*_PATHS)

    def feed(self, data: bytes) -> bytes:
        """Take the next fragment; return what is behind the end of the event."""
        text = self._seam + data
        ends = [at + 2 for pair in PAIRS if (at := text.find(pair)) >= 0]
        self.is_complete = bool(ends)
        end = min(ends, default=len(text))
        self._walk.feed(text[len(self._seam) : end])
        self._seam = text[-1:]
        return text[end:]

    @property
    def faults(self) -> int:
        """1 if the event is complete and its JSON is not, else 0."""
        return int(self.is_complete and not self._walk.ended)

    def said(self) -> Said:
        """What could be read of the event: nothing, if it is complete and its JSON is not."""
        if self.faults:
            return Said()
        kind = self._walk.loaded(("type",))
        return Said(
            type=kind if isinstance(kind, str) else None,
            usage=self._walk.loaded(("usage",)),
            response=Holder(
                self._walk.loaded(("response", "usage")), self._walk.loaded(("response", "background")) is True
            ),
            x_groq=Holder(self._walk.loaded(("x_groq", "usage"))),
        )


def repeats(said: Said) -> bool:
    """True if the event is of a kind that adds no output text."""
    return said.type is not None and said.type.endswith(_REPEATS)


_ONE: Final = msgspec.json.Decoder(Said)
_MANY: Final = msgspec.json.Decoder(list[Said])


def read_events(block: bytes, *, at_start: bool = False, final: bool = False) -> Events:
    """Decode the events of `block`, which begins at an event boundary; the flags are those of `parse_events`.

    Usually each event is one line, or two with its type: then the block is turned into a JSON array by replacing what
    stands between the objects, which costs a tenth of parsing lines.
    """
    text = block.removesuffix(_DONE_EVENT)
    joined = joined_lines(text)
    if joined is not None:
        said = _decoded_many(joined, text.count(b"\n\n"))
        if said is not None:
            return Events(said, len(text) < len(block), 0)
    datas = [event.data.strip() for event in parse_events(block, at_start=at_start, final=final)]
    done = _DONE in datas
    datas = [data for data in datas if data and data != _DONE]
    said = _decoded_many(b",".join(datas), len(datas))
    if said is not None:
        return Events(said, done, 0)
    each = [read_json(data) for data in datas]
    readable = [said for said in each if said is not None]
    return Events(readable, done, len(each) - len(readable))


def read_json(text: bytes) -> Said | None:
    """Decode one JSON text, whatever is odd about it; None if it is not JSON."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ONE.decode(text)
    try:
        return _lenient(json.loads(text.decode(errors="replace"), strict=False))  # control characters may be raw
    except (ValueError, RecursionError):
        return None


def joined_lines(text: bytes) -> bytes | None:
    """The data of single-line events with commas between them; None if that is not what the text is."""
    if not text.endswith(b"\n\n"):
        return None
    if text.startswith(b"data: "):
        joined = text[6:-2].replace(b"\n\ndata: ", b",")
    elif text.startswith(b"event: "):
        joined = _BETWEEN_NAMED.sub(b",", b"\n\n" + text[:-2])[1:]
    else:
        return None
    return None if b"\n" in joined or b"\r" in joined else joined


def _decoded_many(joined: bytes, count: int) -> list[Said] | None:
    """None if the texts are not `count` objects of the usual types."""
    try:
        said = _MANY.decode(b"[%b]" % joined)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return said if len(said) == count else None


def _lenient(raw: object) -> Said:
    """What can be read of an object whose members have unusual types."""
    if not isinstance(raw, dict):
        return Said()
    item = raw.get("item")
    return Said(
        type=_string(raw, "type"),
        choices=[_choice(choice) for choice in _dicts(raw.get("choices"))],
        usage=raw.get("usage"),
        response=_holder(raw.get("response")),
        x_groq=_holder(raw.get("x_groq")),
        delta=raw.get("delta"),
        item=Item(_string(item, "name")) if isinstance(item, dict) else None,
        output_index=_index(raw.get("output_index")),
        error=raw.get("error"),
        text=raw.get("text"),
        output=raw.get("output"),
        status=raw.get("status"),
    )


def _choice(raw: dict[str, Any]) -> Choice:
    return Choice(
        index=_index(raw.get("index")),
        delta=_message(raw.get("delta")),
        message=_message(raw.get("message")),
        text=_string(raw, "text"),
        finish_reason=_string(raw, "finish_reason"),
    )


def _message(raw: object) -> Message | None:
    if not isinstance(raw, dict):
        return None
    content, audio = raw.get("content"), raw.get("audio")
    return Message(
        content=content if isinstance(content, str | list) else None,
        refusal=_string(raw, "refusal"),
        reasoning_content=_string(raw, "reasoning_content"),
        reasoning=_string(raw, "reasoning"),
        tool_calls=[_tool_call(call) for call in _dicts(raw.get("tool_calls"))],
        function_call=_function(raw.get("function_call")),
        audio=Audio(_string(audio, "transcript"), _string(audio, "data")) if isinstance(audio, dict) else None,
    )


def _tool_call(raw: dict[str, Any]) -> ToolCall:
    return ToolCall(_index(raw.get("index")), _function(raw.get("function")), _function(raw.get("custom")))


def _function(raw: object) -> Function | None:
    if not isinstance(raw, dict):
        return None
    arguments = raw.get("arguments")
    if isinstance(arguments, dict | list):  # some servers send them decoded
        arguments = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
    return Function(_string(raw, "name"), arguments if isinstance(arguments, str) else None, _string(raw, "input"))


def _holder(raw: object) -> Holder | None:
    return Holder(raw.get("usage"), raw.get("background")) if isinstance(raw, dict) else None


def _dicts(raw: object) -> list[dict[str, Any]]:
    return [each for each in raw if isinstance(each, dict)] if isinstance(raw, list) else []


def _string(raw: dict[str, Any], name: str) -> str | None:
    value = raw.get(name)
    return value if isinstance(value, str) else None


def _index(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and abs(value) < 2**53 else None
