"""What a request may use, told from its body before it is sent: the estimate that a reservation is made of.

Messages count by OpenAI's cookbook rule and tools by its `num_tokens_for_tools` (protocol.md section 6), images, audio
and files by `proxy/core/images.py`. The upstream's usage replaces all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy.core.images import MEDIA, media_tokens
from proxy.core.plain_chat import read_plain_chat
from proxy.core.prompt_members import MAX_STRUCTURE, read_prompt
from proxy.core.tokens import CL100K, MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from proxy.core.plain_chat import PlainChat
    from proxy.core.prompt_members import PromptMembers
    from proxy.core.tokens import TokenCounter

    _Measure = Callable[["PromptMembers", "_Prompt"], "_Asked"]

# So much of a prompt is counted, more than fits most contexts; it takes 0.2 s if it is made to take long. What is
# behind counts by its length, a token for three bytes of UTF-8: prose has fewer, Chinese about as many.
MAX_COUNTED_CHARS: Final = 2_000_000
MAX_ANSWERS: Final = 100_000  # OpenAI takes 128 choices, and 2048 prompts

# The cookbook's constants; func_init was ten before gpt-4o.
_PER_MESSAGE: Final = 3
_PER_NAME: Final = 1
_PER_REPLY: Final = 3
_PER_FUNCTION: Final = 7
_PER_FUNCTION_CL100K: Final = 10
_PER_TOOLS: Final = 12
_PER_PROPERTY: Final = 3  # once more for having any
_PER_ENUM_ITEM: Final = 3  # once less for being an enumeration

# The strings of a message, an item or a part that the model is shown; ids are not. And where more of them are: a
# string, a list of parts, or an object.
_TEXTS: Final = ("role", "name", "text", "refusal", "arguments", "input", "reasoning_content", "reasoning")
_NESTED: Final = ("content", "output", "summary", "tool_calls", "function_call", "function", "custom")
_SCHEMAS: Final = frozenset({"json_schema", "schema"})

_LOOK_BYTES: Final = 65536  # so much is encoded at once
# Where nothing can be counted, and behind what is counted.
_BYTES_PER_TOKEN: Final = 3

# How many answers are asked for, and the maxima of tokens that are named for each.
_Asked = tuple[int, tuple[Any, ...]]


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """Tokens of the prompt, and the most that all answers together may have; None where the request does not say.

    `answers`: how many are asked for, at most `MAX_ANSWERS`: so often a default maximum applies.
    """

    prompt_tokens: int
    max_output_tokens: int | None
    answers: int = 1


def estimate(body: bytes, endpoint: str, encoding: str, counter: TokenCounter) -> Estimate:
    """What a request with this `body` may use at most, as far as can be told before it is sent.

    `endpoint` is the path behind `/v1/`; one that is not known here has no prompt. Never raises on a body that
    `read_metered` takes; of one with too many members or numbers beyond all bounds the length alone is used.

    A chat takes 5 µs and 64 KiB of prose 0.4 ms, but 64 KiB of random letters 4 ms and of empty messages 26 ms, and
    `MAX_COUNTED_CHARS` bound all of it: call it in a thread for all but small bodies.
    """
    if endpoint == "chat/completions" and len(body) <= MAX_STRUCTURE and (chat := read_plain_chat(body)) is not None:
        return _estimate_plain(chat, encoding, counter)
    measure = _MEASURES.get(endpoint)
    return Estimate(0, None) if measure is None else _estimate_any(body, measure, encoding, counter)


def _estimate_plain(chat: PlainChat, encoding: str, counter: TokenCounter) -> Estimate:
    """As `_estimate_any` would; a body this short has less text than `MAX_COUNTED_CHARS`."""
    tokens = _PER_REPLY + _PER_MESSAGE * len(chat.messages) + counter.count(chat.texts(), encoding)
    answers = min(chat.n, MAX_ANSWERS) if chat.n else 1
    if chat.max_tokens is None and chat.max_completion_tokens is None:
        return Estimate(tokens, None, answers)
    each = max(chat.max_tokens or 0, chat.max_completion_tokens or 0)
    return Estimate(tokens, min(each * answers, MAX_TOKENS), answers)


def _estimate_any(body: bytes, measure: _Measure, encoding: str, counter: TokenCounter) -> Estimate:
    try:
        request = read_prompt(body)
        model = request.model if isinstance(request.model, str) else ""
        prompt = _Prompt(model, cl100k=encoding == CL100K)
        answers, maxima = measure(request, prompt)
    except (ValueError, RecursionError):
        # too much structure, nested too deeply, or a number beyond all bounds
        return Estimate(len(body) // _BYTES_PER_TOKEN, None)
    each = max((tokens for tokens in map(_whole, maxima) if tokens is not None), default=None)
    max_output_tokens = None if each is None else min(each * answers, MAX_TOKENS)
    return Estimate(prompt.tokens + _counted(prompt.texts, encoding, counter), max_output_tokens, answers)


def _counted(texts: Sequence[str], encoding: str, counter: TokenCounter) -> int:
    """The tokens of the texts, counted up to `MAX_COUNTED_CHARS` and by their length behind."""
    counted = []
    left_chars, rest_bytes = MAX_COUNTED_CHARS, 0
    for text in texts:
        counted.append(text[:left_chars])
        for start in range(left_chars, len(text), _LOOK_BYTES):
            rest_bytes += len(text[start : start + _LOOK_BYTES].encode("utf-8", "surrogatepass"))
        left_chars = max(0, left_chars - len(text))
    return counter.count(counted, encoding) + rest_bytes // _BYTES_PER_TOKEN


def _chat(request: PromptMembers, prompt: _Prompt) -> _Asked:
    prompt.add_messages(request.messages)
    prompt.add_tools(request.tools)
    prompt.add_tools(request.functions)
    prompt.add_format(request.response_format)
    # Servers differ in which of the two they follow, so the larger is what the answer may have.
    return _times(request.n), (request.max_completion_tokens, request.max_tokens)


def _completions(request: PromptMembers, prompt: _Prompt) -> _Asked:
    prompts = prompt.add_inputs(request.prompt)
    prompt.add(request.suffix)
    return _times(prompts * max(_times(request.n), _times(request.best_of))), (request.max_tokens,)


def _responses(request: PromptMembers, prompt: _Prompt) -> _Asked:
    if request.instructions is not None:
        prompt.add_message({"role": "system", "content": request.instructions})
    given = request.input
    prompt.add_messages([{"role": "user", "content": given}] if isinstance(given, str) else given)
    prompt.add_tools(request.tools)
    if isinstance(request.text, dict):
        prompt.add_format(request.text.get("format"))
    return 1, (request.max_output_tokens,)


def _embeddings(request: PromptMembers, prompt: _Prompt) -> _Asked:
    prompt.add_inputs(request.input)
    return 1, (0,)


_MEASURES: Final[Mapping[str, _Measure]] = {
    "chat/completions": _chat,
    "completions": _completions,
    "responses": _responses,
    "embeddings": _embeddings,
}


def _times(value: Any) -> int:
    return min(max(1, _whole(value) or 1), MAX_ANSWERS)


def _whole(value: Any) -> int | None:
    """The number as lenient servers read it; None if it is none, or negative, which some take for no limit."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


class _Prompt:
    """Collects what the model will be shown: texts to be counted at once in the end, and tokens by rule."""

    def __init__(self, model: str, *, cl100k: bool) -> None:
        self.texts: list[str] = []
        self.tokens = 0
        self._model = model
        self._per_function = _PER_FUNCTION_CL100K if cl100k else _PER_FUNCTION

    def add_messages(self, messages: Any) -> None:
        self.tokens += _PER_REPLY
        for message in messages if isinstance(messages, list) else [messages]:
            self.add_message(message)

    def add_message(self, message: Any) -> None:
        self.tokens += _PER_MESSAGE
        if isinstance(message, dict) and "name" in message and "role" in message:
            self.tokens += _PER_NAME
        self.add(message)

    def add(self, content: Any) -> None:
        """Add a text, a part, or a list of them, however deep."""
        found = [content]
        while found:
            content = found.pop()
            if isinstance(content, str):
                self.texts.append(content)
            elif isinstance(content, list):
                found += content
            elif isinstance(content, dict):
                self.texts += [text for name in _TEXTS if isinstance(text := content.get(name), str)]
                found += [inner for name in _NESTED if (inner := content.get(name)) is not None]
                if not MEDIA.isdisjoint(content):
                    self.tokens += media_tokens(content, self._model)

    def add_inputs(self, inputs: Any) -> int:
        """Add a text, a list of token ids, or a list of either; returns how many prompts these are."""
        if not isinstance(inputs, list):
            self.add(inputs)
            return 1
        ids = 0
        for each in inputs:
            if isinstance(each, list):
                self.tokens += len(each)
            elif isinstance(each, str | dict):
                self.add(each)
            else:
                ids += 1
        self.tokens += ids
        return max(1, len(inputs) - ids)

    def add_format(self, response_format: Any) -> None:
        """Add a structured answer's schema, as its text: how models are shown it is not published."""
        if isinstance(response_format, dict) and not _SCHEMAS.isdisjoint(response_format):
            self.texts.append(_json(response_format))

    def add_tools(self, tools: Any) -> None:
        """Add tools or functions by `num_tokens_for_tools`, whose rule is applied to nested schemas likewise."""
        if not isinstance(tools, list) or not tools:
            return
        self.tokens += _PER_TOOLS
        for tool in tools:
            if isinstance(tool, dict):
                inner = tool.get("function", tool.get("custom"))
                self._add_function(inner if isinstance(inner, dict) else tool)

    def _add_function(self, function: dict[str, Any]) -> None:
        self.tokens += self._per_function
        self.texts.append(f"{_line(function.get('name'))}:{_line(function.get('description'))}")
        schemas = [function.get("parameters"), function.get("input_schema")]
        while schemas:
            schema = schemas.pop()
            if isinstance(schema, list):
                schemas += schema
            elif isinstance(schema, dict):
                self._add_schema(schema)
                schemas += [schema.get("items"), schema.get("anyOf"), schema.get("oneOf"), schema.get("allOf")]
                for name in ("properties", "$defs", "definitions"):
                    if isinstance(inner := schema.get(name), dict):
                        schemas += inner.values()
        if (grammar := function.get("format")) is not None:  # of a custom tool
            self.texts.append(_json(grammar))

    def _add_schema(self, schema: dict[str, Any]) -> None:
        items = schema.get("enum")
        if isinstance(items, list):
            self.tokens += _PER_ENUM_ITEM * (len(items) - 1)
            self.texts += [item if isinstance(item, str) else _json(item) for item in items]
        properties = schema.get("properties")
        if isinstance(properties, dict) and properties:
            self.tokens += _PER_PROPERTY * (len(properties) + 1)
            for key, each in properties.items():
                kind, description = (each.get("type"), each.get("description")) if isinstance(each, dict) else ("", "")
                self.texts.append(f"{key}:{_line(kind)}:{_line(description)}")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _line(value: Any) -> str:
    """A name, type or description on its line of the cookbook's rule."""
    if isinstance(value, list):  # `"type": ["string", "null"]`
        return "|".join(filter(lambda each: isinstance(each, str), value))
    return value.removesuffix(".") if isinstance(value, str) else ""
