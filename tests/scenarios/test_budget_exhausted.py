"""A stream that outgrows its reservation is charged in full; with `cut_when_exhausted` it ends with its budget."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.settings import KeyConfig, ModelConfig, PlanConfig, PriceConfig
from proxy.config.values import Secret
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import KEY, running
from tests.fakes.usage_recordings import said
from tests.fakes.waiting import until

CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Go on"}]}
WORDS = 50
EVENT = said("word " * WORDS)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MODELS = {"m": ModelConfig(max_output_tokens=50, price=PriceConfig(output=1000.0))}  # a thousandth of a USD a token


def settings(**plan: Any) -> dict[str, Any]:
    keys = (KeyConfig(id="team-a", secret=Secret(KEY), plan="p"),)
    return {"plans": {"p": PlanConfig(**plan)}, "keys": keys, "models": MODELS}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("budget", [{"tokens": ("1000/day",)}, {"spend": ("1/day",)}, {"tokens": ("1000/hour",)}])
async def test_a_stream_is_cut_where_its_budget_ends(budget: dict[str, tuple[str, ...]]) -> None:
    with RawUpstream() as upstream:
        plan = settings(**budget, concurrency=1, cut_when_exhausted=True)
        async with (
            running(f"http://127.0.0.1:{upstream.port}/v1", **plan) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            client.send("POST", CHAT, ASKED)
            peer = await upstream.accept()
            await peer.answer(HEAD)
            answer = await client.head()
            body = b""
            sent = 0
            while b'"error"' not in body:
                await peer.send(chunk(EVENT))
                sent += 1
                assert sent * WORDS < 5000, "it goes on and on"
                while body.count(b"\n\n") < sent and b'"error"' not in body:
                    body += await client.piece(answer)
            while piece := await client.piece(answer):
                body += piece
            assert body.endswith(b"data: [DONE]\n\n")
            assert (b"insufficient_quota" in body) == ("hour" not in str(budget))
            await peer.ended()
            line = await proxy.exchange()
            assert (line["aborted_by"], line["status"], line["outcome"]) == (
                "quota",
                200,
                "rate_limited" if "hour" in str(budget) else "insufficient_quota",
            )
            assert 500 <= line["output_tokens"] <= 1000 + 2 * WORDS, "what fits, and the event that did not"
            kind, window = next(iter(budget)), next(iter(budget.values()))[0].partition("/")[2]
            used = proxy.sample("sluice_quota_used", key="team-a", kind=kind, window=window)
            charged = line["output_tokens"] + line["input_tokens"] if kind == "tokens" else line["cost_usd"] * 1e6
            assert used <= charged * 1.01
            assert used >= charged * 0.99 or window == "hour"
            # what was given beyond the reservation is given back, and no slot is held
            quotas = proxy.worker.app._quotas
            assert quotas._held == {}
            [state] = proxy.worker.app._opened.store._states.values()  # type: ignore[union-attr]
            assert not state.slots


async def test_without_the_setting_it_goes_on_and_is_charged_in_full() -> None:
    body = EVENT * 60 + said(None, "stop") + b"data: [DONE]\n\n"
    answer = response(body, content_type="text/event-stream")
    async with (
        AnsweringUpstream(lambda _: answer) as upstream,
        running(upstream.url, **settings(tokens=("1000/day",))) as proxy,
        await RecordingClient.connect(proxy.port) as client,
    ):
        assert (await client.ask("POST", CHAT, ASKED)).body == body
        line = await proxy.exchange()
        assert line["output_tokens"] == pytest.approx(60 * WORDS, rel=0.02)
        await until(
            lambda: proxy.sample("sluice_quota_used", key="team-a", kind="tokens", window="day") > 2900, "the charge"
        )
        refused = await client.ask("POST", CHAT, ASKED)
        assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
