"""What a simulated model's name asks for: its pace, its length, its faults.

A name that starts with `sim-` is a list of words joined by dashes, in any order: `sim-200t-5ms-crlf`. Every other name
is served as it is, at the default pace, so that a configuration written for real models works on the simulator.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_INTERVAL_S = 0.02  # fast enough to read along, slow enough to be seen streaming
DEFAULT_FAULT_AFTER_EVENTS = 3


class Fault(enum.Enum):
    """How an answer goes wrong, once a number of its events is out."""

    RESET = "reset"
    CUT = "cut"
    STOP = "stop"
    STALL = "stall"
    GARBAGE = "garbage"
    ERROR_EVENT = "error-event"


class Telling(enum.Enum):
    """Where an answer of chat or completions says what it used."""

    OPENAI = "openai"  # whole answers always; streams in an event of its own, when asked
    NEVER = "never"
    EACH = "each"  # as Gemini: on every chunk of a stream, asked or not, the figures so far


@dataclass(frozen=True, slots=True)
class Script:
    """How one answer is played. The defaults are those of a name without instructions.

    `answer_tokens`: length of the text in pieces, None for its natural length. `interval_s`: pause before each piece.
    `first_byte_s`: pause before the response headers. `status`: the HTTP error to answer with instead. `fault` happens
    after `fault_after_events` events. `split_bytes`: size of the single writes. `big_bytes`: size of one extra piece.
    `flood_bytes`: how much text to send instead of the usual one. `telling`: where usage is said.
    """

    answer_tokens: int | None = None
    interval_s: float = DEFAULT_INTERVAL_S
    first_byte_s: float = 0.0
    calls_tools: bool = False
    refuses: bool = False
    status: int | None = None
    hangs_up: bool = False
    fault: Fault | None = None
    fault_after_events: int = DEFAULT_FAULT_AFTER_EVENTS
    not_a_stream: bool = False
    crlf: bool = False
    split_bytes: int | None = None
    big_bytes: int = 0
    flood_bytes: int = 0
    telling: Telling = Telling.OPENAI
    knows_stream_options: bool = True


@dataclass(frozen=True, slots=True)
class _Word:
    """One instruction: how it is recognised, what it changes in the script, and its line in the help."""

    pattern: str
    shown_as: str
    meaning: str
    changes: Callable[[re.Match[str]], dict[str, Any]]


def _seconds(text: str) -> float:
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * {"ms": 0.001, "s": 1.0, "m": 60.0}[unit]


def _bytes(text: str) -> int:
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * {"": 1, "k": 1024, "m": 1024 * 1024}[unit]


def _fault_word(fault: Fault, meaning: str) -> _Word:
    def changes(match: re.Match[str]) -> dict[str, Any]:
        after = DEFAULT_FAULT_AFTER_EVENTS if match[1] is None else int(match[1])
        return {"fault": fault, "fault_after_events": after}

    return _Word(rf"{fault.value}(?:-after-(\d{{1,6}}))?", f"{fault.value}-after-<n>", meaning, changes)


_SIZE = r"(\d{1,3}[km]|\d{1,6})"

_WORDS = (
    _Word("fast", "fast", "no pause between pieces", lambda _: {"interval_s": 0.0}),
    _Word("slow", "slow", "250 ms between pieces", lambda _: {"interval_s": 0.25}),
    _Word(r"(\d{1,6})t", "<n>t", "an answer of n tokens, e.g. 200t", lambda m: {"answer_tokens": int(m[1])}),
    _Word(r"(\d{1,5}ms)", "<n>ms", "n ms between pieces, e.g. 5ms", lambda m: {"interval_s": _seconds(m[1])}),
    _Word(
        r"ttft-(\d{1,5}(?:ms|s|m))",
        "ttft-<time>",
        "this long before the first byte, headers included, e.g. ttft-2s",
        lambda m: {"first_byte_s": _seconds(m[1])},
    ),
    _Word(
        "tools",
        "tools",
        "calls every tool of the request at once; answers in text after their results",
        lambda _: {"calls_tools": True},
    ),
    _Word("refusal", "refusal", "the text comes as a refusal", lambda _: {"refuses": True}),
    _Word(
        r"error-([45]\d\d)",
        "error-<status>",
        "this HTTP error, e.g. error-429 (with retry-after)",
        lambda m: {"status": int(m[1])},
    ),
    _Word("hangup", "hangup", "closes the connection without an answer", lambda _: {"hangs_up": True}),
    _fault_word(Fault.RESET, "TCP reset after n events"),
    _fault_word(Fault.CUT, "closes the connection, the body unfinished"),
    _fault_word(Fault.STOP, "the body ends cleanly, without finish reason or [DONE]"),
    _fault_word(Fault.STALL, "goes silent, the connection stays open"),
    _fault_word(Fault.ERROR_EVENT, "an error inside the stream, then a clean end"),
    _fault_word(Fault.GARBAGE, "a broken chunk size: not HTTP any more; the connection stays open"),
    _Word(
        "not-a-stream", "not-a-stream", "one JSON answer although a stream was asked", lambda _: {"not_a_stream": True}
    ),
    _Word(
        "no-stream-options",
        "no-stream-options",
        "400 for a request with stream_options, as old Azure",
        lambda _: {"knows_stream_options": False},
    ),
    _Word("no-usage", "no-usage", "never says what it used, asked or not", lambda _: {"telling": Telling.NEVER}),
    _Word(
        "usage-each",
        "usage-each",
        "streams say the usage so far on every chunk (not in /responses)",
        lambda _: {"telling": Telling.EACH},
    ),
    _Word("crlf", "crlf", "lines end in CR LF", lambda _: {"crlf": True}),
    _Word(
        r"split-([1-9]\d{0,5})",
        "split-<n>",
        "written n bytes at a time, cutting events and characters",
        lambda m: {"split_bytes": int(m[1])},
    ),
    _Word(f"big-{_SIZE}", "big-<size>", "one piece of this size, e.g. big-1m", lambda m: {"big_bytes": _bytes(m[1])}),
    _Word(
        f"flood-{_SIZE}",
        "flood-<size>",
        "this much text, as fast as it is read (streams only), e.g. flood-64m",
        lambda m: {"flood_bytes": _bytes(m[1]), "interval_s": 0.0},
    ),
)

EXAMPLE_MODELS = ("sim", "sim-fast", "sim-slow", "sim-200t-20ms", "sim-tools", "sim-ttft-2s", "sim-error-429")


def _help() -> str:
    lines = "\n".join(f"  {word.shown_as:<24}{word.meaning}" for word in _WORDS)
    return f"""\
Any model name is served. A name that starts with sim- says how to answer, in words joined by dashes, in any order;
of two words for the same thing the last one counts: sim-slow, sim-200t-5ms, sim-ttft-2s-reset-after-5.

{lines}

Faults count events; -after-<n> may be left out and is then {DEFAULT_FAULT_AFTER_EVENTS}. An answer that is not
streamed takes as long as its stream would, and its fault comes halfway through the body (an error-event as status 500).
Sizes are bytes, or end in k or m. Without instructions a piece is sent every {DEFAULT_INTERVAL_S * 1000:.0f} ms."""


MODEL_HELP = _help()


class UnknownWordError(ValueError):
    """A `sim-` name holds something that is no instruction; the message says what, and lists what there is."""

    def __init__(self, rest: str) -> None:
        known = ", ".join(word.shown_as for word in _WORDS)
        super().__init__(f"The simulator does not understand '{rest}' in this model name. It knows: {known}.")


def read_model_name(model: str) -> Script:
    """The script a model name asks for; raises `UnknownWordError` for a `sim-` name with an unknown word."""
    script = Script()
    rest = model.removeprefix("sim-") if model.startswith("sim-") else ""
    while rest:
        for word in _WORDS:
            if match := re.match(rf"{word.pattern}(?:-(?=.)|$)", rest, re.ASCII):
                script = replace(script, **word.changes(match))
                rest = rest[match.end() :]
                break
        else:
            raise UnknownWordError(rest)
    return script
