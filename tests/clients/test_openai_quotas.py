"""What the SDK does with a refusal: it waits as long as it is told, or gives up at once where it should."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest

from proxy.config.settings import KeyConfig, PlanConfig
from proxy.config.values import Secret
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.running import KEY, running

if TYPE_CHECKING:
    from tests.fakes.running import Running


def on(plan: PlanConfig) -> dict[str, Any]:
    return {"plans": {"p": plan}, "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="p"),)}


async def ask(client: openai.AsyncOpenAI, tokens: int = 10) -> None:
    await client.chat.completions.create(
        model="m", max_tokens=tokens, messages=[{"role": "user", "content": "Say this is a test"}]
    )


def sdk(proxy: Running, retries: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=proxy.url, api_key=KEY, max_retries=retries)


async def test_all_are_served_when_the_window_refills() -> None:
    """Twelve requests at once where eight may begin in a second: the SDK asks again when it is told to."""
    plan = PlanConfig(requests=("8/second",))
    async with AnsweringUpstream() as upstream, running(upstream.url, **on(plan)) as proxy:
        async with sdk(proxy, 30) as client:
            await asyncio.gather(*[ask(client) for _ in range(12)])
        assert len(upstream.requests) == 12
        refused = proxy.sample("sluice_quota_rejections_total", key="team-a", kind="requests", window="second")
        assert refused >= 4


@pytest.mark.parametrize(("tokens", "code"), [(10, "insufficient_quota"), (10_000, "request_too_large")])
async def test_a_spent_budget_is_not_asked_again(tokens: int, code: str) -> None:
    async with AnsweringUpstream() as upstream, running(upstream.url, **on(PlanConfig(tokens=("40/month",)))) as proxy:
        async with sdk(proxy, 5) as client:
            await ask(client)
            await ask(client)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask(client, tokens)
        assert caught.value.code == code
        await proxy.exchange(3)
        assert len(proxy.exchanges) == 3, "one request, and no retries"
