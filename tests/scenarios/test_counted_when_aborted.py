"""A stream that breaks off after k of n events is charged for the text of these k: counted, and the row says so."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from proxy.config.upstreams import TimeoutsConfig
from proxy.core.tokens import O200K
from proxy.tokenizers import load
from tests.fakes.leaving import PROMPT_TOKENS, drain_ends, left, received, secure_line
from tests.fakes.line import CHAT_REQUEST, PATIENCE_S, line
from tests.fakes.recordings import CHAT, COMPLETIONS, RESPONSES
from tests.fakes.relaying import EVENTLESS
from tests.fakes.settled import nothing_held, settled_row
from tests.fakes.usage_recordings import event, plain, said, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.scenarios.conftest import Certificates

pytestmark = pytest.mark.usefixtures("relay_form")

EVENTS: Final = 400
WORDS: Final = (
    " the",
    " of",
    " language",
    " 海",
    "ß",
    "\n\n",
    " 127",
    "()",
    " streams",
    " <|endoftext|>",
    " \U0001f30a",
)


class Told(NamedTuple):
    """Events, and the texts that the first k of them add up to, apart by voice."""

    path: str
    request: bytes
    prompt_tokens: int
    events: list[bytes]
    voices: list[tuple[str, str]]

    def expected_tokens(self, count: int) -> int:
        texts: dict[str, str] = {}
        for voice, text in self.voices[:count]:
            texts[voice] = texts.get(voice, "") + text
        return load({O200K}).count(list(texts.values()), O200K)


def drawn_texts() -> list[str]:
    draw = random.Random(7)
    return ["".join(draw.choices(WORDS, k=draw.randrange(1, 4))) for _ in range(EVENTS)]


def chat(voice: str) -> Told:
    """Streams of chat, with the text in one member of the delta, or alternating between choices."""
    events, voices = [], []
    for number, text in enumerate(drawn_texts()):
        index = number % 2 if voice == "n=2" else 0
        delta = {"content" if voice == "n=2" else voice: text}
        if voice == "tool_calls":
            called = {"name": "f", "arguments": text} if number < 2 else {"arguments": text}
            delta = {"tool_calls": [{"index": number % 2, "function": called}]}  # type: ignore[dict-item]
            index = number % 2
        choice = 0 if voice == "tool_calls" else index
        events.append(event({"id": "c", "choices": [{"index": choice, "delta": delta, "finish_reason": None}]}))
        voices.append((f"{voice} {index}", text))
    return Told(CHAT, CHAT_REQUEST, PROMPT_TOKENS, events, voices)


def completions() -> Told:
    texts = drawn_texts()
    events = [event({"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in texts]
    request = b'{"model":"gpt-4o-mini","stream":true,"prompt":"Hi"}'
    return Told(COMPLETIONS, request, 1, events, [("text", text) for text in texts])


def responses() -> Told:
    texts = drawn_texts()
    kind = "response.output_text.delta"
    events = [typed(kind, output_index=0, delta=text, sequence_number=number) for number, text in enumerate(texts)]
    request = b'{"model":"gpt-4o-mini","stream":true,"input":"Hi"}'
    return Told(RESPONSES, request, PROMPT_TOKENS, events, [("text", text) for text in texts])


TOLD: Final = {
    "content": chat("content"),
    "refusal": chat("refusal"),
    "reasoning": chat("reasoning_content"),
    "tool calls": chat("tool_calls"),
    "n=2": chat("n=2"),
    "completions": completions(),
    "responses": responses(),
}


def assert_counted(row: dict[str, object], told: Told, count: int) -> None:
    expected = told.expected_tokens(count)
    if told is TOLD["tool calls"]:
        expected += min(count, 2)  # the names, a token each
    assert row["grade"] == "counted"
    assert row["output_tokens"] == pytest.approx(expected, rel=0.01, abs=0)
    assert row["input_tokens"] == told.prompt_tokens
    assert isinstance(row["cost_nano_usd"], int)
    assert row["cost_nano_usd"] > 0


def together(events: Sequence[bytes]) -> list[bytes]:
    """The first alone, as it may come, the others in one go."""
    return [*events[:1], b"".join(events[1:])] if len(events) > 1 else list(events)


@pytest.mark.parametrize("count", [0, 1, 7, EVENTS - 1])
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD.keys())
async def test_the_client_leaves_after_k_events(told: Told, count: int) -> None:
    async with line() as way:
        peer = await received(way, together(told.events[:count]), told.path, told.request)
        await left(way, peer)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert (row["outcome"], row["status"], row["streamed"]) == ("client_gone", 499, True)
    assert_counted(row, told, count)


@pytest.mark.parametrize("count", [0, 7, EVENTS - 1])
async def test_over_tls(count: int, certificates: Certificates) -> None:
    told = TOLD["content"]
    async with secure_line(certificates) as way:
        peer = await received(way, together(told.events[:count]))
        await left(way, peer)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert_counted(row, told, count)


@pytest.mark.parametrize("how", ["fin", "rst", "idle", "drain"])
async def test_others_end_it(how: str) -> None:
    """The upstream breaks off or falls silent, or Sluice stops: the client has had its k events all the same."""
    told, count = TOLD["content"], 100
    timeouts = TimeoutsConfig(idle=0.1 if how == "idle" else 60.0)
    async with line(upstream={"timeouts": timeouts}) as way:
        peer = await received(way, together(told.events[:count]))
        if how == "fin":
            peer.close()
        elif how == "rst":
            peer.reset()
        elif how == "drain":
            drain_ends(way)
        if how in ("idle", "drain"):
            await asyncio.wait_for(peer.ended_raw(), PATIENCE_S)
        row = await settled_row(way.proxy)
        await nothing_held(way.proxy)
    assert row["status"] == 200
    assert row["outcome"] != "ok"
    assert_counted(row, told, count)


@EVENTLESS
@pytest.mark.parametrize("maximum", [100, None])
async def test_an_answer_that_nobody_saw_being_made(maximum: int | None) -> None:
    """Not streamed, and left before its head: the upstream was at work, so what was reserved is charged."""
    limit = b"" if maximum is None else b',"max_tokens":%d' % maximum
    async with line() as way:
        peer = await way.open(CHAT, CHAT_REQUEST.replace(b',"stream":true', limit))
        await left(way, peer)
        row = await settled_row(way.proxy)
    assert (row["grade"], row["input_tokens"]) == ("unknown", PROMPT_TOKENS)
    assert row["output_tokens"] == (16384 if maximum is None else maximum)
    assert row["reserved_tokens"] == row["input_tokens"] + row["output_tokens"]
    assert row["cost_nano_usd"] == row["reserved_nano_usd"] > 0


@EVENTLESS
async def test_a_stream_that_is_left_before_its_head_costs_its_prompt() -> None:
    async with line() as way:
        peer = await way.open()
        await left(way, peer)
        row = await settled_row(way.proxy)
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("counted", PROMPT_TOKENS, 0)


@pytest.mark.parametrize(("told", "charged"), [(50, 50), (1, 5)])
async def test_usage_in_the_middle_is_a_lower_bound(told: int, charged: int) -> None:
    """vLLM and Gemini say on each chunk what was used so far: thinking that is not shown, too."""
    events = [said("one two", usage=plain(21, told)), said(" three four five")]
    async with line() as way:
        peer = await received(way, events)
        await left(way, peer)
        row = await settled_row(way.proxy)
    assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("counted", 21, charged)
