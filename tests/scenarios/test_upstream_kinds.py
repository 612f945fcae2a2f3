"""Every kind of upstream, configured as deploy/examples has it: asked as it wants, relayed as it answers, charged.

The client is a plain one: it asks for no usage and knows no vendor.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

from tests.fakes.examples import EXAMPLES, staged
from tests.fakes.framed import framed
from tests.fakes.line import JSON_TYPE
from tests.fakes.recordings import CHAT, COMPLETIONS, DONE
from tests.fakes.running import KEY
from tests.fakes.settled import all_rows, nothing_held, settled_row
from tests.fakes.upstream_kinds import KINDS, Kind, behaving
from tests.fakes.usage_recordings import event, plain, said

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.running import Running

_BY_NAME: Final = {kind.example: kind for kind in KINDS}
_LINE_ENDS: Final = (b"\n", b"\r\n", b"\r")

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.example)


def question(model: str, *, stream: bool) -> bytes:
    """Spaced as no writer of ours would, with members that some kinds ignore or know alone."""
    flag = "true" if stream else "false"
    return (
        f'{{ "model":"{model}","stream": {flag}, "seed":12345678901234567890,"logprobs":false,"n":1,\n'
        ' "messages":[{"role":"user","content":"Say hi, 海"}],"response_format":{"type":"text"}}'
    ).encode()


async def assert_charged(proxy: Running, kind: Kind, count: int) -> None:
    """The rows of all exchanges have what the upstream said was used, and what that costs; each took one attempt."""
    for row in (await all_rows(proxy, count)).values():
        assert (row["grade"], row["outcome"], row["status"], row["attempts"]) == ("exact", "ok", 200, 1)
        assert (row["input_tokens"], row["output_tokens"], row["cached_tokens"] or 0) == (*kind.tokens, kind.cached)
        is_local = kind.example in ("vllm", "llama.cpp", "ollama")
        assert (row["cost_nano_usd"] > 0) == (kind.is_priced and not is_local)
    assert proxy.total("sluice_unpriced_exchanges_total") == (0 if kind.is_priced else count)


def test_there_is_a_kind_for_each_example() -> None:
    assert {kind.example for kind in KINDS} == {file.stem for file in EXAMPLES}
    assert len(KINDS) == len(EXAMPLES)


@every_kind
async def test_a_stream(kind: Kind) -> None:
    """Byte for byte what it would have sent to the client's own request; its figures are in the ledger.

    What the configuration sets takes the place of what the client says: its key, a query member, a header.
    """
    sent = question(kind.model, stream=True)
    path = CHAT + "?api-version=2020-01-01" * kind.example.startswith("azure")
    headers = (JSON_TYPE, ("HTTP-Referer", "https://client.example"))
    async with staged(kind.example, behaving(kind)) as (upstream, proxy, client):
        for end in _LINE_ENDS:
            upstream.answer = behaving(kind, end)
            answer = await client.ask("POST", path, sent, headers=headers)
            assert (answer.status, answer.whole) == (200, True)
            assert answer.body == (kind.streams.shown or kind.streams.unasked).replace(b"\n", end)
        await assert_charged(proxy, kind, len(_LINE_ENDS))
        assert len(upstream.requests) == len(_LINE_ENDS)
        await nothing_held(proxy)
        head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    assert KEY.encode() not in head
    assert (b"https://client.example" in head) == (kind.example != "openrouter")
    assert (b"authorization:" in head.lower()) == any(line.startswith(b"authorization:") for line in kind.headers)
    edited = body.replace(b'"stream_options":{"include_usage":true},', b"", 1)
    renamed = (kind.served or kind.model).encode()
    assert edited == sent.replace(f'"{kind.model}"'.encode(), b'"%b"' % renamed, 1)
    assert (edited != body) == (kind.example not in ("openrouter", "mistral"))


@every_kind
async def test_an_answer_without_a_stream(kind: Kind) -> None:
    """With its spacing, the blank lines before it, and members that OpenAI does not know."""
    async with staged(kind.example, behaving(kind)) as (_, proxy, client):
        for _ in range(2):
            answer = await client.ask("POST", CHAT, question(kind.model, stream=False), headers=(JSON_TYPE,))
            assert (answer.status, answer.body) == (200, kind.whole)
        await assert_charged(proxy, kind, 2)
        assert (await proxy.exchange(2))["reused"]


@every_kind
async def test_a_client_that_asks_for_usage_itself(kind: Kind) -> None:
    """It gets all of it; from Mistral the refusal, which is then its own."""
    sent = question(kind.model, stream=True).replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
    async with staged(kind.example, behaving(kind)) as (upstream, proxy, client):
        answer = await client.ask("POST", CHAT, sent, headers=(JSON_TYPE,))
        if kind.refusal is None:
            assert (answer.status, answer.body) == (200, kind.streams.asked)
            await assert_charged(proxy, kind, 1)
        else:
            assert (answer.status, answer.body) == (422, kind.refusal)
            assert (await settled_row(proxy))["outcome"] == "upstream_error"
        assert len(upstream.requests) == 1


def streaming(*events: bytes) -> Callable[[bytes], bytes]:
    """An upstream that streams these, whatever it is asked, in chunks cut anywhere."""
    return lambda _: framed(b"".join(events), "chunked", random.Random(0))


# what a stream says of usage in its own way, and what is to be believed of it
_FIGURES: Final[dict[str, tuple[str, str, tuple[bytes, ...], tuple[int, int]]]] = {
    "gemini grows and has no end mark": (
        "gemini",
        CHAT,
        (said("A", usage=plain(4, 1)), said("B", usage=plain(4, 2)), said("C", "stop", usage=plain(4, 3))),
        (4, 3),
    ),
    "vllm on each chunk": (
        "vllm",
        CHAT,
        (*(said(f" w{n}", usage=plain(7, n + 1)) for n in range(40)), said("", "stop", usage=plain(7, 41)), DONE),
        (7, 41),
    ),
    "groq unasked": ("groq", CHAT, (said("Hi"), said(None, "stop", x_groq={"usage": plain(41, 2)}), DONE), (41, 2)),
    "ollama's zeros on legacy completions": (
        "ollama",
        COMPLETIONS,
        (
            event({"choices": [{"text": "Hi", "index": 0, "finish_reason": None}], "usage": plain(0, 0)}),
            event({"choices": [{"text": "", "index": 0, "finish_reason": "stop"}], "usage": plain(26, 8)}),
            event({"choices": [{"text": "", "index": 0, "finish_reason": None}], "usage": plain(0, 0)}),
            DONE,
        ),
        (26, 8),
    ),
    "openrouter beside an empty choice": (
        "openrouter",
        CHAT,
        (said("Hi"), said("", "stop"), said("", usage={**plain(9, 1), "cost": 0.1}), DONE),
        (9, 1),
    ),
    "deepseek gives up for want of machines": (
        "deepseek",
        CHAT,
        (b": keep-alive\n\n", said("H"), said("", "insufficient_system_resource", usage=plain(17, 1)), DONE),
        (17, 1),
    ),
    "azure's filter stops it": (
        "azure-classic",
        CHAT,
        (said("Hi"), said(None, "content_filter", content_filter_results={"hate": {"filtered": True}}), DONE),
        (0, 0),
    ),
}


@pytest.mark.parametrize(("example", "path", "events", "tokens"), _FIGURES.values(), ids=_FIGURES.keys())
async def test_figures_told_in_other_ways(
    example: str, path: str, events: tuple[bytes, ...], tokens: tuple[int, int]
) -> None:
    """All bytes pass; the last figures that can be believed count. Where there are none, what was seen is counted."""
    async with staged(example, streaming(*events)) as (_, proxy, client):
        answer = await client.ask("POST", path, question(_BY_NAME[example].model, stream=True), headers=(JSON_TYPE,))
        assert (answer.body, answer.whole) == (b"".join(events), True)
        row = await settled_row(proxy)
    assert row["outcome"] == "ok"
    if any(tokens):
        assert (row["grade"], row["input_tokens"], row["output_tokens"]) == ("exact", *tokens)
    else:
        assert row["grade"] == "counted"
        assert 0 < row["output_tokens"] < row["input_tokens"]
