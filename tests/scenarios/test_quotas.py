"""Promise 7 over HTTP: what a key may use, it may use, and what it may not it is told honestly."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, LimitsConfig, ModelConfig, ModelLimitsConfig, PlanConfig, PriceConfig
from proxy.config.values import Secret
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.line import line
from tests.fakes.raw_client import RawClient
from tests.fakes.running import KEY, running
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.running import Running

CHAT: Final = "/v1/chat/completions"
USED: Final = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ANSWER: Final = json.dumps(
    {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "Hi"}}], "usage": USED}
).encode()


def on(plan: PlanConfig, **limits: Any) -> dict[str, Any]:
    """Settings with one key on one plan."""
    own = LimitsConfig(**limits) if limits else None
    return {"plans": {"p": plan}, "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="p", limits=own),)}


def asked(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": "Say this is a test"}], **more}


async def ask(proxy: Running, body: dict[str, Any] | None = None) -> Answer:
    async with await RecordingClient.connect(proxy.port) as client:
        return await client.ask("POST", CHAT, body or asked())


def ratelimit(answer: Answer, kind: str) -> tuple[str | None, str | None]:
    return answer.header(f"x-ratelimit-limit-{kind}"), answer.header(f"x-ratelimit-remaining-{kind}")


async def test_requests_in_a_window_that_slides() -> None:
    async with (
        AnsweringUpstream(lambda _: response(ANSWER)) as upstream,
        running(upstream.url, **on(PlanConfig(requests=("2/hour", "100/day")))) as proxy,
    ):
        first, second, third = [await ask(proxy) for _ in range(3)]
        assert [answer.status for answer in (first, second, third)] == [200, 200, 429]
        assert ratelimit(first, "requests") == ("2", "1")
        assert ratelimit(third, "requests") == ("2", "0")
        assert (third.error["type"], third.error["code"]) == ("requests", "rate_limit_exceeded")
        wait_s = int(third.header("retry-after") or "")
        assert 0 < wait_s <= 7200, "two buckets of an hour at the most"
        assert wait_s - 1 <= int(third.header("retry-after-ms") or "") / 1000 <= wait_s
        assert len(upstream.requests) == 2, "what was refused went nowhere"
        labels = {"key": "team-a", "kind": "requests", "window": "hour"}
        await until(lambda: proxy.sample("sluice_quota_rejections_total", **labels) == 1, "the refusal")
        assert 1.5 < proxy.sample("sluice_quota_used", **labels) <= 2, "the window slides on"
        line_of_third = await proxy.exchange(3)
        assert (line_of_third["outcome"], line_of_third["attempts"]) == ("rate_limited", 0)


async def test_tokens_are_reserved_and_settled() -> None:
    """12 of the prompt and 20 for the answer are reserved, 15 are charged."""
    async with (
        AnsweringUpstream(lambda _: response(ANSWER)) as upstream,
        running(upstream.url, **on(PlanConfig(tokens=("62/day",)))) as proxy,
    ):
        answers = [await ask(proxy) for _ in range(3)]
        assert [ratelimit(answer, "tokens")[1] for answer in answers] == ["30", "15", "0"]
        last = await ask(proxy)
        assert (last.status, last.error["code"]) == (429, "insufficient_quota")
        assert last.header("x-should-retry") == "false"
        assert last.header("retry-after") is None
        assert "used 45 tokens, may use 32 tokens more" in last.error["message"]
        large = await ask(proxy, asked(max_tokens=100))
        assert (large.status, large.error["code"]) == (429, "request_too_large")


async def test_money() -> None:
    models = {"m": ModelConfig(price=PriceConfig(input=100, output=1000))}
    async with (
        AnsweringUpstream(lambda _: response(ANSWER)) as upstream,
        running(upstream.url, models=models, **on(PlanConfig(spend=("0.03/month",)))) as proxy,
    ):
        assert [(await ask(proxy)).status for _ in range(3)] == [200, 200, 429]  # 0.006 each, 0.0212 reserved
        labels = {"key": "team-a", "kind": "spend", "window": "month"}
        assert proxy.sample("sluice_quota_limit", **labels) == 30_000


async def test_limits_of_a_key_and_of_a_model() -> None:
    plan = PlanConfig(requests=("10/hour",), model_limits={"big*": ModelLimitsConfig(requests=("1/hour",))})
    async with AnsweringUpstream(lambda _: response(ANSWER)) as upstream, running(upstream.url, **on(plan)) as proxy:
        big = [(await ask(proxy, asked("big-1"))).status for _ in range(2)]
        small = [(await ask(proxy, asked("small"))).status for _ in range(2)]
        assert (big, small) == ([200, 429], [200, 200])
        async with running(upstream.url, **on(plan, requests=("2/hour",))) as own:
            assert [(await ask(own, asked("big-1"))).status for _ in range(3)] == [200, 200, 429]


async def test_what_failed_gives_back_all_but_the_request() -> None:
    async with (
        AnsweringUpstream(lambda _: response(b'{"error":{"message":"busy"}}', status=503)) as upstream,
        running(upstream.url, **on(PlanConfig(requests=("9/hour",), tokens=("62/day",)))) as proxy,
    ):
        answers = [await ask(proxy) for _ in range(3)]
        assert [answer.status for answer in answers] == [503, 503, 503]
        assert [ratelimit(answer, "tokens")[1] for answer in answers] == ["30", "30", "30"]
        assert ratelimit(answers[-1], "requests") == ("9", "6")


async def test_200_at_once_never_exceed_the_limit() -> None:
    """Each reserves 32 tokens and uses 15."""
    async with (
        AnsweringUpstream(lambda _: response(ANSWER)) as upstream,
        running(upstream.url, **on(PlanConfig(tokens=("1000/day",)))) as proxy,
    ):
        answers = await asyncio.gather(*[ask(proxy) for _ in range(200)])
        statuses = [answer.status for answer in answers]
        used = proxy.sample("sluice_quota_used", key="team-a", kind="tokens", window="day")
        assert set(statuses) == {200, 429}
        assert statuses.count(200) * 15 <= 1000
        assert used <= 1000


@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_a_slot_is_free_again_the_moment_its_client_is_gone() -> None:
    """One at a time: abort a stream, and the very next request is admitted."""
    async with line(**on(PlanConfig(concurrency=1))) as way:
        for _ in range(100):
            client = await RawClient.connect(way.proxy.port)
            await client.post(CHAT, asked(stream=True), "Content-Type: application/json")
            peer = await way.accept()
            await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"data: {}\n\n")
            await client.recv_until(b"data: {}\n\n")
            await client.leave("reset")
            await peer.ended()
        status = (await way.answered([response(ANSWER)], body=json.dumps(asked()).encode())).status
        assert status == 200
        await way.proxy.exchange(101)
        assert [line["outcome"] for line in way.proxy.exchanges].count("client_gone") == 100


async def test_too_many_at_once() -> None:
    async with line(**on(PlanConfig(concurrency=1))) as way:
        peer, _ = await way.begun()
        refused = await ask(way.proxy)
        assert (refused.status, refused.error["code"]) == (429, "concurrency_limit_exceeded")
        await peer.send(b"0\r\n\r\n")
        peer.close()


async def test_what_was_used_this_month_is_remembered(tmp_path: Path) -> None:
    """Windows of the calendar come back from the ledger after a restart."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with AnsweringUpstream(lambda _: response(ANSWER)) as upstream:
        for expected in ([200, 200], [200, 429]):
            async with running(upstream.url, ledger=ledger, **on(PlanConfig(requests=("3/month",)))) as proxy:
                assert [(await ask(proxy)).status for _ in range(2)] == expected
