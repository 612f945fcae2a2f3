"""Every way an exchange may go: what is asked, what the upstream sends, when the client leaves, what is charged."""

from __future__ import annotations

import asyncio
import enum
import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final

from proxy.core.usage import Usage
from tests.fakes.answering import response
from tests.fakes.line import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES = "chat/completions", "completions", "embeddings", "responses"
KEYS: Final = {"team-a": "sk-a-0123456789abcdef", "team-b": "sk-b-0123456789abcdef", "team-c": "sk-c-0123456789abcdef"}
MODELS: Final = ("mini", "odd", "free", "glob-small", "glob-large")
DEAF: Final = tuple(f"deaf-{number}" for number in range(6))  # each at an upstream of its own
WORD: Final = " sea"  # one token
_STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ERROR: Final = b'{"error":{"message":"No.","type":"server_error","param":null,"code":null}}'


class Then(enum.Enum):
    """What an upstream does instead of sending bytes."""

    CUT = "close the connection"
    HOLD = "wait for the other side to close it"
    AWAIT = "wait until the client is known to have left"


class Leaves(enum.Enum):
    """When a client goes away."""

    BEFORE = "when the upstream has the request"
    EARLY = "after some events"
    FINISHED = "after the finish reason"


@dataclass(frozen=True)
class Kind:
    """One way. `outcome`, `status` and `grade` are the row's; without a grade there is none.

    `says` is what the upstream says was used. Where it does not, `counts`: a token for each word of the answer.
    """

    answer: Callable[[Plan], Iterator[bytes | Then]] | None = None
    endpoint: str = CHAT
    streamed: bool = False
    outcome: str = "ok"
    status: int = 200
    grade: str | None = "exact"
    says: Callable[[Plan], Usage] | None = None
    leaves: Leaves | None = None
    asks_usage: bool = False
    is_deaf: bool = False
    weight: int = 20


@dataclass
class Plan:
    """An exchange to be. The upstream finds it by its number, which stands in the prompt."""

    number: int
    name: str
    kind: Kind
    key: str
    model: str
    words: int
    usage: Usage
    has_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    has_left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> dict[str, Any]:
        """The request's, in JSON."""
        prompt = f"#{self.number}#"
        asked: dict[str, Any] = {"model": self.model}
        if self.kind.streamed:
            asked["stream"] = True
        if self.kind.asks_usage:
            asked["stream_options"] = {"include_usage": True}
        if self.kind.endpoint == CHAT:
            return asked | {"messages": [{"role": "user", "content": prompt}], "max_tokens": 50}
        return asked | {"prompt" if self.kind.endpoint == COMPLETIONS else "input": prompt}


def draw(count: int, seed: int) -> list[Plan]:
    """So many exchanges, every kind among them by its weight, in drawn order."""
    drawn = Random(seed)
    names = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
    chosen = [*KINDS, *drawn.choices(names, k=count - len(KINDS))]
    drawn.shuffle(chosen)
    plans = []
    for number, name in enumerate(chosen):
        kind = KINDS[name]
        tokens, words = drawn.randint(1, 5000), drawn.randint(1, 30)
        output = drawn.randint(1, 900)
        usage = Usage(
            tokens, output, cached_tokens=drawn.randint(0, tokens), reasoning_tokens=drawn.choice([0, output // 3])
        )
        model = drawn.choice(DEAF if kind.is_deaf else MODELS)
        if name == "an unknown model":
            model = "unheard-of"
        plans.append(Plan(number, name, kind, drawn.choice(list(KEYS)), model, words, usage))
    return plans


def _event(value: object) -> bytes:
    return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def _choice(plan: Plan, text: str, finish: str | None = None) -> dict[str, Any]:
    told = {"text": text} if plan.kind.endpoint == COMPLETIONS else {"delta": {"content": text} if text else {}}
    return {"id": "c", "choices": [{"index": 0, **told, "finish_reason": finish}]}


def _chat_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _responses_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _whole(plan: Plan) -> Iterator[bytes | Then]:
    message = {"role": "assistant", "content": WORD * plan.words}
    answer: dict[str, Any] = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    if plan.kind.says is not None:
        answer["usage"] = _chat_usage(plan.usage)
    yield response(json.dumps(answer).encode())


def _half(plan: Plan) -> Iterator[bytes | Then]:
    whole = next(_whole(plan))
    assert isinstance(whole, bytes)
    yield whole[:-20]
    yield Then.CUT


def _deltas(plan: Plan) -> Iterator[bytes | Then]:
    yield _STREAM_HEAD
    for _ in range(plan.words):
        yield _event(_choice(plan, WORD))


def _stream(plan: Plan) -> Iterator[bytes | Then]:
    yield from _deltas(plan)
    yield _event(_choice(plan, "", "stop"))
    if plan.kind.leaves is Leaves.FINISHED:
        yield Then.AWAIT
    if plan.kind.says is not None:
        yield _event({"id": "c", "choices": [], "usage": _chat_usage(plan.usage)})
    yield chunk(b"data: [DONE]\n\n") + LAST_CHUNK


def _broken(plan: Plan) -> Iterator[bytes | Then]:
    yield from _deltas(plan)
    yield Then.CUT


def _held(plan: Plan) -> Iterator[bytes | Then]:
    yield from _deltas(plan)
    yield Then.HOLD


def _silent(_: Plan) -> Iterator[bytes | Then]:
    yield Then.HOLD


def _gone(_: Plan) -> Iterator[bytes | Then]:
    yield Then.CUT


def _failing(status: int) -> Kind:
    def answer(_: Plan) -> Iterator[bytes | Then]:
        yield response(_ERROR, status=status)

    return Kind(answer, outcome="upstream_error", status=status, says=_nothing)


def _embedded(plan: Plan) -> Iterator[bytes | Then]:
    tokens = plan.usage.input_tokens
    answer = {"object": "list", "data": [], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    yield response(json.dumps(answer).encode())


def _response(plan: Plan) -> dict[str, Any]:
    return {"id": "r", "object": "response", "output": [], "usage": _responses_usage(plan.usage)}


def _responded(plan: Plan) -> Iterator[bytes | Then]:
    yield response(json.dumps(_response(plan)).encode())


def _response_events(plan: Plan, *, to_the_end: bool) -> Iterator[bytes | Then]:
    yield _STREAM_HEAD
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    for number in range(plan.words):
        yield _event({"type": "response.output_text.delta", **place, "sequence_number": number, "delta": WORD})
    if to_the_end:
        last = {"type": "response.completed", "sequence_number": plan.words, "response": _response(plan)}
        yield _event(last) + LAST_CHUNK
    else:
        yield Then.CUT


def _listed(_: Plan) -> Iterator[bytes | Then]:
    yield response(b'{"object":"list","data":[]}')


def _all(plan: Plan) -> Usage:
    return plan.usage


def _input(plan: Plan) -> Usage:
    return Usage(plan.usage.input_tokens)


def _nothing(_: Plan) -> Usage:
    return Usage()


_GONE: Final[dict[str, Any]] = {"outcome": "client_gone", "status": 499}
_LOST: Final[dict[str, Any]] = {"outcome": "upstream_protocol_error"}
KINDS: Final = {
    "whole": Kind(_whole, says=_all, weight=120),
    "whole, usage unsaid": Kind(_whole, grade="counted"),
    "whole, broken off": Kind(_half, grade="unknown", **_LOST),
    "whole, left before": Kind(_silent, grade="unknown", leaves=Leaves.BEFORE, **_GONE),
    "stream": Kind(_stream, streamed=True, says=_all, weight=150),
    "stream, usage asked for": Kind(_stream, streamed=True, says=_all, asks_usage=True, weight=60),
    "stream, usage unsaid": Kind(_stream, streamed=True, grade="counted", weight=40),
    "stream, broken off": Kind(_broken, streamed=True, grade="counted", weight=40, **_LOST),
    "stream, left before": Kind(_silent, streamed=True, grade="counted", leaves=Leaves.BEFORE, **_GONE),
    "stream, left early": Kind(_held, streamed=True, grade="counted", leaves=Leaves.EARLY, weight=80, **_GONE),
    "stream, left at the end": Kind(_stream, streamed=True, says=_all, leaves=Leaves.FINISHED, **_GONE),
    "stream, asked again": Kind(_stream, streamed=True, grade="counted", is_deaf=True, weight=40),
    "stream, refused": Kind(
        _stream, streamed=True, says=_nothing, asks_usage=True, is_deaf=True, outcome="upstream_error", status=400
    ),
    "the upstream's 400": _failing(400),
    "the upstream's 429": _failing(429),
    "the upstream's 500": _failing(500),
    "hung up": Kind(_gone, says=_nothing, status=502, **_LOST),
    "completions": Kind(_stream, COMPLETIONS, streamed=True, says=_all, weight=30),
    "embeddings": Kind(_embedded, EMBEDDINGS, says=_input, weight=60),
    "response": Kind(_responded, RESPONSES, says=_all, weight=40),
    "response events": Kind(
        lambda plan: _response_events(plan, to_the_end=True), RESPONSES, streamed=True, says=_all, weight=60
    ),
    "response events, broken off": Kind(
        lambda plan: _response_events(plan, to_the_end=False), RESPONSES, streamed=True, grade="counted", **_LOST
    ),
    "files": Kind(_listed, "files", grade="unknown"),
    "an unknown model": Kind(grade=None, outcome="model_not_found", status=404),
    "a bad key": Kind(grade=None, outcome="invalid_api_key", status=401),
    "no model": Kind(grade=None, outcome="bad_request", status=400),
    "the list of models": Kind(endpoint="models", grade=None),
}
