"""An upstream that keeps failing is left alone: clients get other routes or an honest 503, and one asks for all."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from proxy.config.settings import BreakerConfig, RetriesConfig
from tests.fakes.answering import CHAT_EVENTS, chat, response
from tests.fakes.endings import assert_envelope
from tests.fakes.routing_stage import STREAMED, Changing, HoldingUpstream, Routed, routed, samples, script
from tests.fakes.settled import nothing_held
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FAILURES: Final = 3
LONG_S: Final = 60.0
BROKEN: Final = response(b'{"error":{"message":"broken","type":"t","param":null,"code":"theirs"}}', status=500)
ONCE: Final = RetriesConfig(attempts=1)
CUT: Final = response(CHAT_EVENTS[:90], content_type="text/event-stream", extra="Connection: close\r\n").replace(
    b"Content-Length: ", b"Content-Length: 1"
)


def breaker(cooldown_s: float = LONG_S, failures: int = FAILURES) -> BreakerConfig:
    return BreakerConfig(failures=failures, cooldown=cooldown_s, max_cooldown=300.0)


@contextlib.asynccontextmanager
async def breaking(
    *answering: Any, cooldown_s: float = LONG_S, failures: int = FAILURES, retries: RetriesConfig = ONCE, **how: Any
) -> AsyncIterator[Routed]:
    settings = {"breaker": breaker(cooldown_s, failures), **how.pop("settings", {})}
    async with routed(*answering, retries=retries, settings=settings, **how) as at:
        yield at


def circuit(at: Routed, name: str = "a") -> int:
    """0 closed, 1 half-open, 2 open."""
    return int(at.proxy.sample("sluice_upstream_circuit", upstream=name))


def cool_down(at: Routed) -> None:
    """Let the first upstream's cool-down be over."""
    circuit = at.proxy.worker.app.upstreams["a"].health.circuit
    assert not circuit.admits(time.monotonic())
    circuit._until_s = 0.0
    assert circuit.admits(time.monotonic())


async def opened(at: Routed, failures: int = FAILURES) -> None:
    """Let the first upstream fail until its circuit is open."""
    for _ in range(failures):
        assert circuit(at) == 0
        assert (await at.ask()).status == 500
    assert circuit(at) == 2


async def test_it_opens_after_failures_and_then_answers_at_once() -> None:
    async with breaking(script(BROKEN)) as at:
        await opened(at)
        for _ in range(5):
            told = await at.ask()
            assert_envelope(told, 503, "no_upstream")
            assert 0.75 * LONG_S - 1 < float(told.header("retry-after") or 0) <= LONG_S
        assert at.asked == [FAILURES], "nobody asks while it is open"
        line = await at.proxy.exchange(FAILURES + 1)
        assert (line["outcome"], line["attempts"], line["upstream"]) == ("no_upstream", 0, "a")
        assert (line["grade"], line["cost_usd"]) == ("exact", 0)
        await nothing_held(at.proxy)


async def test_another_route_serves_and_the_first_comes_back() -> None:
    first = Changing(script(BROKEN))
    async with breaking(first, chat, retries=RetriesConfig(backoff=0.0)) as at:
        for _ in range(FAILURES + 3):
            assert (await at.ask()).status == 200
        assert at.asked == [FAILURES, FAILURES + 3]
        assert circuit(at) == 2
        assert "tries" not in await at.proxy.exchange(FAILURES + 3), "the open one is not even tried"
        first.answer = chat
        cool_down(at)
        for _ in range(4):
            assert (await at.ask()).status == 200
        assert at.asked == [FAILURES + 4, FAILURES + 3], "its priority holds again"
        assert circuit(at) == 0


async def test_half_open_lets_exactly_one_through() -> None:
    upstream = HoldingUpstream(script(BROKEN, chat))
    async with breaking(upstream, failures=1) as at:
        _, failing = await at.later()
        await until(lambda: upstream.held, "the first")
        upstream.release()
        assert (await failing).status == 500
        cool_down(at)
        _, probing = await at.later()
        await until(lambda: upstream.held, "the one who asks")
        assert circuit(at) == 1
        for _ in range(5):
            told = await at.ask()
            assert_envelope(told, 503, "no_upstream")
            assert told.header("retry-after") == "1"
        upstream.release()
        assert (await probing).status == 200
        assert circuit(at) == 0
        assert at.asked == [2]


async def test_one_that_asks_in_vain_opens_it_again_for_longer() -> None:
    async with breaking(script(BROKEN), cooldown_s=2.0, failures=1) as at:
        await opened(at, 1)
        cool_down(at)
        assert (await at.ask()).status == 500
        assert float((await at.ask()).header("retry-after") or 0) >= 3, "twice two seconds, less a quarter at most"
        assert at.asked == [2]


async def test_a_client_that_leaves_while_it_asks_gives_the_permission_back() -> None:
    upstream = HoldingUpstream(script(BROKEN, chat))
    async with breaking(upstream, failures=1) as at:
        _, failing = await at.later()
        await until(lambda: upstream.held, "the first")
        upstream.release()
        assert (await failing).status == 500
        cool_down(at)
        leaving, answer = await at.later()
        await until(lambda: upstream.held, "the one who asks")
        answer.cancel()
        await leaving.reset()
        await at.proxy.exchange(2)
        assert circuit(at) == 1, "nothing was learned"
        upstream.release()
        _, answer = await at.later()
        await until(lambda: len(upstream.requests) == 3, "the next may ask")
        upstream.release()
        assert (await answer).status == 200
        assert circuit(at) == 0


@pytest.mark.parametrize("status", [400, 404, 413, 422, 401, 403, 408, 429])
async def test_what_the_upstream_is_not_to_blame_for_opens_nothing(status: int) -> None:
    async with breaking(script(response(b'{"error":{}}', status=status))) as at:
        for _ in range(2 * FAILURES):
            assert (await at.ask()).status == status
        assert circuit(at) == 0


async def test_clients_that_leave_open_nothing() -> None:
    upstream = HoldingUpstream()
    async with breaking(upstream) as at:
        for count in range(1, 2 * FAILURES + 1):
            client, answer = await at.later()
            await until(lambda: upstream.held == count, "it is asked")  # noqa: B023 - used at once
            answer.cancel()
            await client.reset()
            line = await at.proxy.exchange(count)
            assert line["aborted_by"] == "client"
        assert circuit(at) == 0
        assert samples(at.proxy, "sluice_upstream_attempts_total") == {"a abandoned": 2 * FAILURES}
        await nothing_held(at.proxy)


@pytest.mark.parametrize("answer", [b"", CUT], ids=["no answer", "half a stream"])
async def test_answers_that_break_off_are_failures(answer: bytes) -> None:
    async with breaking(script(answer)) as at:
        turn = 0
        while circuit(at) == 0:
            told = await at.ask(STREAMED)
            assert told.status == (200 if answer else 502)
            assert b'"code":"upstream_protocol_error"' in told.body
            turn += 1
            await at.proxy.exchange(turn)
        assert circuit(at) == 2
        assert turn == FAILURES
        assert (await at.ask(STREAMED)).status == 503


async def test_who_waits_for_nothing_else_is_told_when_it_opens() -> None:
    upstream = HoldingUpstream(script(BROKEN))
    async with breaking(upstream, failures=1, upstream={"max_concurrency": 1}) as at:
        clients = [await at.later()]
        await until(lambda: upstream.held, "the first")
        clients += [await at.later() for _ in range(4)]
        await until(lambda: at.proxy.sample("sluice_queue_waiting", upstream="a") == 4, "the others wait")
        upstream.release()
        answers = [await answer for _, answer in clients]
        assert [answer.status for answer in answers] == [500, 503, 503, 503, 503]
        for told in answers[1:]:
            assert_envelope(told, 503, "no_upstream")
            assert 0.75 * LONG_S - 1 < float(told.header("retry-after") or 0) <= LONG_S
        assert at.asked == [1]
        await nothing_held(at.proxy)
        assert at.proxy.sample("sluice_queue_waiting", upstream="a") == 0


def statuses(*turns: int) -> Callable[[bytes], bytes]:
    return script(*(chat if status == 200 else BROKEN for status in turns))


async def test_a_share_of_failures_opens_it_too() -> None:
    """Every other one fails: never three in a row, but half of twenty."""
    turns = [500, 200] * 20
    async with breaking(statuses(*turns)) as at:
        seen = [(await at.ask()).status for _ in range(30)]
        assert seen.index(503) == 21, "more than twenty are known, and one more failed"
        assert circuit(at) == 2
