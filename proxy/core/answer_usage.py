"""Read a usage object, in whichever of its dialects, or disbelieve it (protocol.md sections 1.6 and 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeGuard

import msgspec

from proxy.core.tokens import MAX_TOKENS
from proxy.core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.core.answer_events import Said

# A year of audio: what is longer is no duration of a file that was uploaded.
_MAX_AUDIO_S: Final = 366 * 86400.0

_INPUT: Final = ("prompt_tokens", "input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")
# transcriptions say `input_token_details`, in the singular
_INPUT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS: Final = ("completion_tokens_details", "output_tokens_details", "output_token_details")

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _UsualInput(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    cached_tokens: _Tokens = 0
    cache_write_tokens: _Tokens = 0
    audio_tokens: _Tokens = 0
    image_tokens: _Tokens = 0
    text_tokens: Any = None  # what is left of the input


class _UsualOutput(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    reasoning_tokens: _Tokens = 0
    audio_tokens: _Tokens = 0
    accepted_prediction_tokens: _Tokens = 0
    rejected_prediction_tokens: _Tokens = 0


class _Usual(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The usage of a chat as OpenAI says it; whatever else an upstream says is read by `_read_any`."""

    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    total_tokens: _Tokens
    prompt_tokens_details: _UsualInput | None = None
    completion_tokens_details: _UsualOutput | None = None


_NO_INPUT_DETAILS: Final = _UsualInput()
_NO_OUTPUT_DETAILS: Final = _UsualOutput()


def read_usage(said: object, *, input_only: bool = False) -> Usage | None:
    """What a usage object says, None if it cannot be believed.

    Not believed: no object; all zeros, as Ollama's placeholder; a total that is negative or above `MAX_TOKENS`; one
    that is missing and does not follow from the others. `input_only`: the endpoint has no output (embeddings), so that
    what is not said of it is 0 and a lone `total_tokens` is the input.
    """
    try:
        usual = msgspec.convert(said, _Usual)
    except msgspec.ValidationError:
        return _read_any(said, input_only=input_only)
    return _read_usual(usual)


def _read_usual(said: _Usual) -> Usage | None:
    """As `_read_any` would."""
    input_tokens = said.prompt_tokens
    output_tokens = max(said.completion_tokens, said.total_tokens - input_tokens)
    if not input_tokens and not output_tokens:
        return None
    of_input, of_output = said.prompt_tokens_details, said.completion_tokens_details
    if of_input is None and of_output is None:
        return Usage(input_tokens, output_tokens)
    of_input, of_output = of_input or _NO_INPUT_DETAILS, of_output or _NO_OUTPUT_DETAILS
    return Usage(
        input_tokens,
        output_tokens,
        min(of_input.cached_tokens, input_tokens),
        min(of_input.cache_write_tokens, input_tokens),
        min(of_input.audio_tokens, input_tokens),
        min(of_input.image_tokens, input_tokens),
        min(of_output.reasoning_tokens, output_tokens),
        min(of_output.audio_tokens, output_tokens),
        min(of_output.accepted_prediction_tokens, output_tokens),
        min(of_output.rejected_prediction_tokens, output_tokens),
    )


def _read_any(said: object, *, input_only: bool) -> Usage | None:
    """The same in whichever dialect."""
    if not isinstance(said, dict):
        return None
    if said.get("type") == "duration":
        return _duration(said.get("seconds"))
    if _is_absurd(said, (*_INPUT, *_OUTPUT)):
        return None
    input_tokens, output_tokens = _first(said, _INPUT), _first(said, _OUTPUT)
    total = _tokens(said.get("total_tokens"))
    if input_tokens is None and total is not None and (output_tokens is not None or input_only):
        input_tokens = max(0, total - (output_tokens or 0))
    if output_tokens is None and input_tokens is not None:
        if total is not None:
            output_tokens = max(0, total - input_tokens)
        elif input_only or said.get("type") == "tokens":  # a transcription may have no text
            output_tokens = 0
    if input_tokens is None or output_tokens is None:
        return None
    if total is not None:
        # xAI and Gemini leave the reasoning out of the completion, and charge it: it is in the total alone
        output_tokens = max(output_tokens, total - input_tokens)
    if not input_tokens and not output_tokens:
        return None
    return _detailed(said, input_tokens, output_tokens)


def usage_of(said: Said) -> Usage | None:
    """The usage of an event, wherever it stands in it."""
    if said.response is None and said.x_groq is None:
        return read_usage(said.usage)
    holders = (said, said.response, said.x_groq)
    usages = (read_usage(holder.usage) for holder in holders if holder is not None and holder.usage is not None)
    return next((usage for usage in usages if usage is not None), None)


def _detailed(said: Mapping[str, object], input_tokens: int, output_tokens: int) -> Usage:
    of_input, of_output = _object(said, _INPUT_DETAILS), _object(said, _OUTPUT_DETAILS)
    cached = _first(of_input, ("cached_tokens",))
    if cached is None:
        cached = _first(said, ("prompt_cache_hit_tokens", "cache_read_input_tokens"))
    written = _first(of_input, ("cache_write_tokens",))
    if written is None:
        written = _first(said, ("cache_creation_input_tokens",))

    def of(details: Mapping[str, object], name: str, total: int) -> int:
        return min(_tokens(details.get(name)) or 0, total)

    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=min(cached or 0, input_tokens),
        cache_write_tokens=min(written or 0, input_tokens),
        audio_input_tokens=of(of_input, "audio_tokens", input_tokens),
        image_input_tokens=of(of_input, "image_tokens", input_tokens),
        reasoning_tokens=of(of_output, "reasoning_tokens", output_tokens),
        audio_output_tokens=of(of_output, "audio_tokens", output_tokens),
        accepted_prediction_tokens=of(of_output, "accepted_prediction_tokens", output_tokens),
        rejected_prediction_tokens=of(of_output, "rejected_prediction_tokens", output_tokens),
    )


def _duration(seconds: object) -> Usage | None:
    if not _is_number(seconds) or not 0 < seconds <= _MAX_AUDIO_S:
        return None
    return Usage(audio_s=float(seconds))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tokens(value: object) -> int | None:
    """The number of tokens, None for what is none (NaN and infinity too). Some upstreams write integers as floats."""
    if not _is_number(value) or not 0 <= value <= MAX_TOKENS:
        return None
    return int(value)


def _is_absurd(said: Mapping[str, object], names: tuple[str, ...]) -> bool:
    return any(_is_number(said.get(name)) and _tokens(said[name]) is None for name in names)


def _first(said: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        tokens = _tokens(said.get(name))
        if tokens is not None:
            return tokens
    return None


def _object(said: Mapping[str, object], names: tuple[str, ...]) -> Mapping[str, object]:
    for name in names:
        value = said.get(name)
        if isinstance(value, dict):
            return value
    return {}
