"""What an answer used, and how we know: the vocabulary of accounting."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

Grade = Literal["exact", "counted", "unknown"]
"""How far the figures of an exchange can be trusted.

exact: the upstream said what was used, or nothing was. counted: every event up to a known stop was seen, and its text
counted. unknown: the answer could not be followed, and what was reserved is charged.
"""
GRADES: Final[tuple[Grade, ...]] = get_args(Grade)


class Usage(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Tokens of one exchange. The details lie inside the two totals (protocol.md section 1.6), they add nothing.

    `input_tokens` holds cached, cache-write, audio and image input; `output_tokens` holds reasoning, audio output and
    predictions, rejected ones too. `audio_s` is the duration that some transcriptions are charged by, in seconds.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    audio_s: float = 0.0


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What an answer turned out to use."""

    grade: Grade
    usage: Usage = Usage()
