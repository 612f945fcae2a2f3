"""Promise 7 across processes: proxies that share a store share the quotas, and its failure does what was chosen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, PlanConfig, StoreConfig
from proxy.config.values import Secret, SecretUrl
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.redis import RedisServer, running_redis
from tests.fakes.running import KEY, running
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes.client import Answer
    from tests.fakes.running import Running

CHAT: Final = "/v1/chat/completions"
BODY: Final = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "Say this is a test"}]}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def sharing(redis: RedisServer, plan: PlanConfig, on_failure: Any = "deny") -> dict[str, Any]:
    store = StoreConfig(url=SecretUrl(redis.url), on_failure=on_failure, timeout=5.0)  # a machine under test is busy
    key = KeyConfig(id="team-a", secret=Secret(KEY), plan="p")
    return {"plans": {"p": plan}, "keys": (key,), "settings": {"store": store}}


async def ask(proxy: Running) -> Answer:
    async with await RecordingClient.connect(proxy.port) as client:
        return await client.ask("POST", CHAT, BODY)


async def test_two_proxies_admit_as_many_as_one_may(redis: RedisServer) -> None:
    shared = sharing(redis, PlanConfig(requests=("10/hour", "100/month"), tokens=("100000/minute",)))
    async with (
        AnsweringUpstream() as upstream,
        running(upstream.url, **shared) as one,
        running(upstream.url, **shared) as other,
    ):
        answers = await asyncio.gather(*[ask(proxy) for proxy in (one, other) for _ in range(20)])
        assert sorted(answer.status for answer in answers) == [200] * 10 + [429] * 30
        assert len(upstream.requests) == 10
        assert {answer.header("x-ratelimit-limit-requests") for answer in answers} == {"10"}
        assert one.sample("sluice_store_seconds_count", operation="reserve") >= 20


@pytest.mark.parametrize(("on_failure", "status"), [("deny", 503), ("allow", 200)])
async def test_a_store_that_is_away(redis: RedisServer, on_failure: str, status: int) -> None:
    async with (
        AnsweringUpstream() as upstream,
        running(upstream.url, **sharing(redis, PlanConfig(requests=("10/hour",)), on_failure)) as proxy,
    ):
        assert (await ask(proxy)).status == 200
        redis.stop()
        answer = await ask(proxy)
        assert answer.status == status
        if status == 503:
            assert answer.error["code"] == "store_unavailable"
            assert int(answer.header("retry-after") or "") >= 1
        else:
            assert answer.header("x-ratelimit-limit-requests") is None
            assert proxy.sample("sluice_quota_unchecked_total", key="team-a") == 1
        await until(lambda: proxy.total("sluice_store_errors_total") > 0, "the errors to be counted")
