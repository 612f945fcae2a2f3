"""An upstream is changed while it serves and others wait for it: nobody is lost, and its limit holds for both."""

from __future__ import annotations

import msgspec

from proxy.config.settings import BreakerConfig, QueueConfig, RetriesConfig
from proxy.config.upstreams import TimeoutsConfig
from proxy.config.values import Secret
from tests.fakes.answering import response
from tests.fakes.routing_stage import HoldingUpstream, Routed, routed, samples
from tests.fakes.waiting import until

ERROR = response(b'{"error":{"message":"broken"}}', status=500)


async def rotate(at: Routed, key: str) -> None:
    """Reload with another API key for the upstream."""
    worker = at.proxy.worker
    before = worker.config
    changed = msgspec.structs.replace(before.upstreams["a"], api_keys=(Secret(key),))
    await worker.adopt(msgspec.structs.replace(before, upstreams={**before.upstreams, "a": changed}))


async def test_who_waits_at_a_reload_is_served_and_no_more_at_once_than_before() -> None:
    upstream = HoldingUpstream()
    async with routed(upstream, upstream={"max_concurrency": 2}, retries=RetriesConfig(attempts=1)) as at:
        answers = [(await at.later())[1] for _ in range(6)]
        await until(lambda: upstream.held == 2, "both places are taken")
        await until(lambda: samples(at.proxy, "sluice_queue_waiting") == {"a": 4}, "the others wait")
        await rotate(at, "sk-rotated-1111111111")
        answers += [(await at.later())[1] for _ in range(2)]
        await rotate(at, "sk-rotated-2222222222")
        answers += [(await at.later())[1] for _ in range(2)]
        for served in range(1, 11):
            await until(lambda: upstream.held >= 1, "the next is asked")
            assert upstream.held <= 2
            upstream.release()
            await until(lambda served=served: sum(one.done() for one in answers) >= served, "an answer")  # type: ignore[misc]
        assert [(await one).status for one in answers] == [200] * 10
        await until(lambda: len(at.proxy.worker.app.live) == 0, "all are settled")
        assert at.in_flight() == {"a": 0}
        used = [request.partition(b"Authorization: Bearer ")[2].split(b"\r\n")[0] for request in upstream.requests]
        assert used[-1] == b"sk-rotated-2222222222"


async def test_the_time_for_an_exchange_begins_with_its_place_and_blames_no_upstream() -> None:
    upstream = HoldingUpstream()
    settings = {"queue": QueueConfig(max_wait=60.0), "breaker": BreakerConfig()}
    limits = {"max_concurrency": 1, "timeouts": TimeoutsConfig(total=0.5)}
    async with routed(upstream, upstream=limits, retries=RetriesConfig(attempts=1), settings=settings) as at:
        answers = [(await at.later())[1] for _ in range(8)]
        assert {(await one).error["code"] for one in answers} == {"upstream_timeout"}
        assert samples(at.proxy, "sluice_upstream_circuit") == {}, "closed"


async def test_a_hedged_try_that_failed_by_itself_is_not_charged() -> None:
    slow, quick = HoldingUpstream(), HoldingUpstream(lambda _: ERROR)
    retries = RetriesConfig(attempts=1, hedge_after=0.05)
    async with routed(slow, quick, retries=retries) as at:
        _, answer = await at.later()
        await until(lambda: quick.held == 1, "the second try")
        quick.release()
        await until(lambda: at.in_flight() == {"a": 1, "b": 0}, "the failed try has left its place")
        slow.release()
        assert (await answer).status == 200
        line = await at.proxy.exchange()
        assert (line["attempts"], line["upstream"]) == (2, "a")
        assert line["input_tokens"] < 20
