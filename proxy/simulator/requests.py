"""Reading a request to the simulator: its body, checked as OpenAI checks it, becomes an `Ask`."""

from __future__ import annotations

import re
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from proxy.simulator.answers import Ask, Tool, count_messages, count_tools, pieces_of
from proxy.simulator.models import Script, UnknownWordError, read_model_name

Positive = Annotated[int, msgspec.Meta(ge=1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
_Messages = Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
_Tokens = list[int]
_Inputs = Annotated[list[str | int | _Tokens], msgspec.Meta(min_length=1)]

_SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"
_STATUS_ERRORS: dict[int, tuple[str, str | None, str]] = {  # type, code, message (protocol.md section 3)
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached on requests per min (RPM). Please try again in 1s."),
    500: ("server_error", None, _SERVER_ERROR),
    503: ("server_error", None, "That model is currently overloaded with other requests."),
}


class SimulatedError(Exception):
    """An HTTP error answer in OpenAI's envelope, with the members of its `error` object."""

    def __init__(self, status: int, error_type: str, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_object = {"message": message, "type": error_type, "param": param, "code": code}


def status_error(status: int) -> SimulatedError:
    """The error answer of a status that a model name asks for, worded as OpenAI words it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error_type, code, message = _STATUS_ERRORS.get(status, (kind, None, f"Status {status}."))
    return SimulatedError(status, error_type, code, f"{message} (Simulated, as the model name asks.)")


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str


class ChatBody(_Body):
    """POST /chat/completions, as far as it changes the answer."""

    messages: _Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Choices | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(_Body):
    """POST /completions, as far as it changes the answer."""

    prompt: str | _Inputs
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Choices | None = None
    max_tokens: Positive | None = None
    stop: str | list[str] | None = None


class ResponsesBody(_Body):
    """POST /responses, as far as it changes the answer."""

    input: str | list[dict[str, Any]]
    stream: bool | None = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class EmbeddingBody(_Body):
    """POST /embeddings."""

    input: str | _Inputs
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=3072)] | None = None
    encoding_format: str | None = None


B = TypeVar("B", bound=_Body)


def read_body(raw: bytes, shape: type[B]) -> tuple[B, Script]:
    """The body of a request and the script its model name asks for.

    Raises `SimulatedError` 400 for what OpenAI would refuse: bad JSON, missing members, wrong types, and
    `stream_options` without `stream`; for a `sim-` name with unknown words, and for what such a name refuses.
    """
    try:
        body = msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        _refuse_member(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = "We could not parse the JSON body of your request. The OpenAI API expects a JSON payload."
        raise SimulatedError(400, "invalid_request_error", None, message) from None
    if getattr(body, "stream_options", None) is not None and not getattr(body, "stream", False):
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise SimulatedError(400, "invalid_request_error", None, message, "stream_options")
    try:
        script = read_model_name(body.model)
    except UnknownWordError as error:
        raise SimulatedError(400, "invalid_request_error", "invalid_value", str(error), "model") from None
    if getattr(body, "stream_options", None) is not None and not script.knows_stream_options:
        message = "Unrecognized request argument supplied: stream_options"
        raise SimulatedError(400, "invalid_request_error", None, message)
    return body, script


def ask_chat(raw: bytes) -> Ask:
    """A chat request; raises `SimulatedError` 400."""
    body, script = read_body(raw, ChatBody)
    answered = body.messages[-1].get("role") == "tool"
    return Ask(
        model=body.model,
        script=script,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        prompts=(msgspec.json.encode(body.messages).decode(),),
        prompt_tokens=count_messages(body.messages) + count_tools(body.tools),
        choices_per_prompt=body.n or 1,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stops=_stops(body.stop),
        tools=_tools_to_call(body, script, answered=answered),
    )


def ask_completion(raw: bytes) -> Ask:
    """A legacy completions request, one answer set for each of its prompts; raises `SimulatedError` 400."""
    body, script = read_body(raw, CompletionBody)
    prompts = inputs_of(body.prompt)
    return Ask(
        model=body.model,
        script=script,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        prompts=tuple(map(str, prompts)),
        prompt_tokens=sum(map(count_input, prompts)),
        choices_per_prompt=body.n or 1,
        max_tokens=body.max_tokens,
        stops=_stops(body.stop),
    )


def ask_responses(raw: bytes) -> Ask:
    """A /responses request; raises `SimulatedError` 400."""
    body, script = read_body(raw, ResponsesBody)
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    if body.instructions:
        items = [{"role": "system", "content": body.instructions}, *items]
    answered = bool(items) and items[-1].get("type") == "function_call_output"
    return Ask(
        model=body.model,
        script=script,
        stream=bool(body.stream),
        include_usage=True,
        prompts=(msgspec.json.encode(items).decode(),),
        prompt_tokens=count_messages(items) + count_tools(body.tools),
        max_tokens=body.max_output_tokens,
        tools=_tools_to_call(body, script, answered=answered),
    )


def inputs_of(value: str | list[str | int | _Tokens]) -> list[str | _Tokens]:
    """The texts, or token lists, of a `prompt` or `input` member: one alone, or a list of them."""
    if isinstance(value, str):
        return [value]
    numbers = [item for item in value if isinstance(item, int)]
    return [numbers] if numbers else [item for item in value if not isinstance(item, int)]


def count_input(value: str | _Tokens) -> int:
    """Tokens of one text, or of one list of tokens."""
    return len(pieces_of(value)) if isinstance(value, str) else len(value)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _tools_to_call(body: ChatBody | ResponsesBody, script: Script, *, answered: bool) -> tuple[Tool, ...]:
    """Which tools the answer calls: those `tool_choice` demands, else all if the model's name says so.

    With the results in the prompt (`answered`) the name no longer asks for calls, so that an agent's loop ends.
    """
    # chat puts the function one level down, /responses does not
    functions = [tool.get("function", tool) for tool in body.tools or () if tool.get("type") == "function"]
    tools = [Tool(str(function.get("name")), function.get("parameters") or {}) for function in functions]
    choice = body.tool_choice
    if isinstance(choice, dict):
        tools = [tool for tool in tools if tool.name == choice.get("function", choice).get("name")]
    elif choice == "none" or (choice != "required" and (answered or not script.calls_tools)):
        return ()
    return tuple(tools[:1] if body.parallel_tool_calls is False else tools)


def _refuse_member(reason: str) -> NoReturn:
    if missing := re.search(r"missing required field `(\w+)`", reason):
        name = missing[1]
        message = f"Missing required parameter: '{name}'."
        raise SimulatedError(400, "invalid_request_error", "missing_required_parameter", message, name) from None
    path = re.search(r" - at `\$\.?(.*)`$", reason)
    code = "invalid_type" if ", got " in reason else "invalid_value"
    message = f"Invalid value in the request body: {reason}."
    raise SimulatedError(400, "invalid_request_error", code, message, path[1] if path else None) from None
