"""Waiting for an upstream at `max_concurrency`: fair over keys, bounded, and nothing held by who leaves."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import KeyConfig, PlanConfig, QueueConfig, RetriesConfig
from proxy.config.values import Secret
from tests.fakes.answering import chat, response
from tests.fakes.endings import assert_envelope
from tests.fakes.routing_stage import HoldingUpstream, Routed, body_of, routed, samples, script
from tests.fakes.running import KEY
from tests.fakes.settled import nothing_held, settled_row
from tests.fakes.waiting import LONG_S, TIMER_S, until

if TYPE_CHECKING:
    from tests.fakes.client import Answer, RecordingClient

OTHER: Final = "sk-test-key-of-another"
CROWD: Final = 500
# all of the crowd is served only where there is time for it
ROUNDS: Final = int(os.environ.get("SLUICE_TEST_ROUNDS", "0"))


def body(who: str, padding: str = "") -> bytes:
    return b'{"model":"m","user":"%b","messages":[{"role":"user","content":"%b"}]}' % (who.encode(), padding.encode())


def who(request: bytes) -> str:
    """Whose request it is."""
    return body_of(request).split(b'"user":"')[1].partition(b'"')[0].decode()


def queueing(upstream: HoldingUpstream, most: int = 1, *, weight: float = 1.0, **queue: Any) -> Any:
    """A proxy before one upstream for `most` at once, two keys, of which the second has that weight."""
    return routed(
        upstream,
        upstream={"max_concurrency": most},
        retries=RetriesConfig(attempts=1),
        plans={"first": PlanConfig(concurrency=1000), "second": PlanConfig(weight=weight)},
        keys=(
            KeyConfig(id="first", secret=Secret(KEY), plan="first"),
            KeyConfig(id="second", secret=Secret(OTHER), plan="second"),
        ),
        settings={"queue": QueueConfig(**{"max_wait": 60.0, **queue})},
    )


def waiting(at: Routed) -> int:
    return int(at.proxy.sample("sluice_queue_waiting", upstream="a"))


async def crowd(at: Routed, count: int, key: str = KEY) -> list[tuple[RecordingClient, asyncio.Task[Answer]]]:
    """So many clients with that key, all of them waiting."""
    before = waiting(at)
    name = "first" if key == KEY else "second"
    came = [await at.later(body(name), key=key) for _ in range(count)]
    await until(lambda: waiting(at) == before + count, f"{count} who wait", LONG_S)
    return came


async def served(upstream: HoldingUpstream, count: int) -> None:
    """Let so many be answered, each when the next one after it is asked."""
    for _ in range(count):
        asked = len(upstream.requests)
        upstream.release()
        await until(lambda: len(upstream.requests) == asked + 1, "the next")  # noqa: B023 - used at once


async def full(at: Routed, upstream: HoldingUpstream, most: int = 1) -> None:
    """The upstream is at its limit."""
    for _ in range(most):
        await at.later(body("holds"))
    await until(lambda: upstream.held == most, "all its places are taken")


async def leave(came: list[tuple[RecordingClient, asyncio.Task[Answer]]]) -> None:
    for client, answer in came:
        answer.cancel()
        await client.reset()


@pytest.mark.parametrize("most", [1, 4])
async def test_a_key_that_floods_delays_another_by_one_service_time(most: int) -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream, most) as at:
        await full(at, upstream, most)
        flood = await crowd(at, CROWD)
        await served(upstream, 3)
        [(_, answer)] = await crowd(at, 1, OTHER)
        await served(upstream, 1)
        assert who(upstream.requests[-1]) == "second", "of those who wait it is the very next"
        assert waiting(at) == CROWD - 3
        for _ in range(most):  # the places that were taken when it came, then its own
            upstream.release()
        assert (await answer).status == 200
        if ROUNDS:
            await served(upstream, waiting(at))
            assert Counter(map(who, upstream.requests)) == {"holds": most, "first": CROWD, "second": 1}
        await leave(flood)
        await until(lambda: waiting(at) == 0, "those who left are out", LONG_S)
        assert at.in_flight()["a"] <= most


@pytest.mark.parametrize("most", [1, 4])
async def test_weights_share_the_throughput(most: int) -> None:
    upstream, count = HoldingUpstream(), 40
    async with queueing(upstream, most, weight=3.0) as at:
        await full(at, upstream, most)
        came = await crowd(at, count) + await crowd(at, count, OTHER)
        await served(upstream, count)
        shares = Counter(map(who, upstream.requests[most:]))
        print(f"\nof {count} served with weights 3:1: {dict(shares)}")
        assert abs(shares["second"] / count - 0.75) <= 0.025
        await leave(came)
        await until(lambda: waiting(at) == 0, "those who left are out", LONG_S)


async def test_within_a_key_first_come_is_first_served() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream) as at:
        await full(at, upstream)
        for number in range(10):
            await at.later(body(f"no. {number}"))
            await until(lambda: waiting(at) == number + 1, "it waits")  # noqa: B023 - used at once
        await served(upstream, 10)
        assert [who(request) for request in upstream.requests[1:]] == [f"no. {number}" for number in range(10)]


async def test_what_a_wait_leaves_behind() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream) as at:
        await full(at, upstream)
        [(_, first)] = await crowd(at, 1)
        [(_, second)] = await crowd(at, 1)
        assert at.proxy.sample("sluice_exchanges_in_flight", phase="queue") == 2
        await served(upstream, 2)
        upstream.release()
        assert (await first).status == (await second).status == 200
        line = await at.proxy.exchange(3)
        assert (line["attempts"], line["outcome"]) == (1, "ok")
        assert line["phases_s"]["queue"] > 0
        assert "queue" not in (await at.proxy.exchange())["phases_s"]
        assert samples(at.proxy, "sluice_queue_seconds_count") == {"a": 2}
        assert samples(at.proxy, "sluice_queue_position_count") == {"a": 2}
        assert at.proxy.sample("sluice_queue_position_sum", upstream="a") == 1, "one had nobody ahead, the other one"
        assert waiting(at) == 0
        assert at.proxy.sample("sluice_overhead_seconds_sum", endpoint="chat/completions") < line["duration_s"] * 3
        await nothing_held(at.proxy)


@pytest.mark.parametrize("limits", [{"max_waiting": 2}, {"max_bytes": 2 * len(body("first")) + 10}], ids=str)
async def test_a_full_queue_says_so_at_once(limits: dict[str, int]) -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream, **limits) as at:
        await full(at, upstream)
        await crowd(at, 2)
        told = await at.ask(body("first"))
        assert_envelope(told, 503, "queue_full")
        assert 1 <= int(told.header("retry-after") or 0) <= 60
        line = await at.proxy.exchange()
        assert (line["outcome"], line["attempts"], line["grade"], line["phase"]) == ("queue_full", 0, "exact", "route")
        assert waiting(at) == 2
        assert len(upstream.requests) == 1
        assert at.proxy.worker.app.pipeline._attempts._balancer._queue.held_bytes == 2 * len(body("first"))


async def test_a_key_that_fills_the_queue_makes_room_for_another() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream, max_waiting=3) as at:
        await full(at, upstream)
        flood = await crowd(at, 3)
        _, other = await at.later(body("second"), key=OTHER)
        newest = await flood[-1][1]
        assert_envelope(newest, 503, "queue_full")
        assert waiting(at) == 3
        await served(upstream, 2)
        assert who(upstream.requests[-1]) == "second", "before it went only the one that came first"
        upstream.release()
        assert (await other).status == 200


async def test_a_wait_has_an_end() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream, max_wait=0.2) as at:
        await full(at, upstream)
        told = await at.ask(body("first"))
        assert_envelope(told, 503, "queue_timeout")
        assert 1 <= int(told.header("retry-after") or 0) <= 60
        line = await at.proxy.exchange()
        assert (line["outcome"], line["attempts"], line["phase"]) == ("queue_timeout", 0, "queue")
        assert line["phases_s"]["queue"] >= 0.2 - TIMER_S
        stored = await settled_row(at.proxy)
        assert (stored["status"], stored["cost_nano_usd"], stored["grade"]) == (503, 0, "exact")
        assert waiting(at) == 0
        assert len(upstream.requests) == 1
        assert samples(at.proxy, "sluice_queue_seconds_count") == {"a": 1}


async def test_who_leaves_is_out_at_once_and_holds_nothing() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream) as at:
        await full(at, upstream)
        came = await crowd(at, 3)
        await leave(came[1:2])
        await until(lambda: waiting(at) == 2, "it is out")
        line = await at.proxy.exchange()
        assert (line["outcome"], line["phase"], line["aborted_by"]) == ("client_gone", "queue", "client")
        stored = await settled_row(at.proxy)
        assert (stored["attempts"], stored["cost_nano_usd"], stored["input_tokens"]) == (0, 0, 0)
        app = at.proxy.worker.app
        assert len(app.live) == len(app._quotas._store._states["first"].slots) == 3
        await served(upstream, 2)
        upstream.release()
        assert (await came[0][1]).status == (await came[2][1]).status == 200
        assert len(upstream.requests) == 3, "the one that left was never asked for"
        await until(lambda: not len(app.live), "all are settled")
        assert not app._quotas._store._states["first"].slots
        assert at.in_flight() == {"a": 0}


async def test_a_drain_serves_who_waits_while_there_is_time() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream) as at:
        await full(at, upstream)
        [(_, answer)] = await crowd(at, 1)
        stopping = asyncio.get_running_loop().create_task(at.proxy.worker.stop(LONG_S))
        await until(lambda: at.proxy.worker.app.is_draining, "it drains")
        await served(upstream, 1)
        upstream.release()
        assert (await answer).status == 200
        await stopping


async def test_the_end_of_a_drain_tells_who_waits() -> None:
    upstream = HoldingUpstream()
    async with queueing(upstream) as at:
        await full(at, upstream)
        [(_, answer)] = await crowd(at, 1)
        await at.proxy.worker.stop(0.0)
        assert_envelope(await answer, 503, "draining")
        assert len(upstream.requests) == 1
        lines = {line["phase"]: line for line in at.proxy.exchanges}
        assert lines["queue"]["aborted_by"] == "drain"
        assert waiting(at) == 0
        assert at.in_flight() == {"a": 0}


async def test_streams_hold_their_place_to_the_end_and_errors_give_it_back() -> None:
    """Whatever becomes of an exchange, the next one gets its place."""
    failures = [response(b'{"error":{}}', status=status, extra="Connection: close\r\n") for status in (400, 500)]
    upstream = HoldingUpstream(script(*failures, b"", chat))
    async with queueing(upstream) as at:
        await full(at, upstream)
        came = await crowd(at, 3)
        await served(upstream, 3)
        upstream.release()
        assert [(await answer).status for _, answer in came] == [500, 502, 200]
        assert at.in_flight() == {"a": 0}
        assert waiting(at) == 0
