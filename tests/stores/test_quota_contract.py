"""One contract, every store of quotas: all or nothing, exactly once, in the window where it was reserved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import astuple, replace

from proxy.core.quota import MAX_AMOUNT, Demand, Granted, Limits
from tests.fakes.quota_asking import (
    ALL,
    DAILY,
    ONE_SLOT,
    REQUESTS,
    SPEND,
    TOKENS,
    granted,
    refused,
    reserve,
    standings,
    used,
)

if TYPE_CHECKING:
    from tests.fakes.quotas import QuotaStage


async def test_admits_up_to_the_limit_and_says_what_is_left(stage: QuotaStage) -> None:
    answer = await reserve(stage, ALL, Demand(1, 60, 400))
    assert isinstance(answer, Granted)
    assert [(standing.used, standing.remaining) for standing in answer.stands.standings()] == [
        (1, 9),
        (60, 40),
        (60, 90),
        (400, 600),
    ]
    await granted(stage, ALL, Demand(1, 40, 600))
    assert (await refused(stage, ALL, Demand(1, 1, 0))).limit == TOKENS
    assert await used(stage) == [2, 100, 100, 1000]


async def test_no_limits_admit_everything(stage: QuotaStage) -> None:
    answer = await reserve(stage, Limits(), Demand(1, 10**12, 10**12))
    assert isinstance(answer, Granted)
    assert answer.stands.standings() == ()
    await stage.store.settle(answer.reservation, Demand(1))


@pytest.mark.parametrize("demand", [Demand(1, 101, 0), Demand(1, 61, 0), Demand(1, 0, 1001), Demand(11)])
async def test_a_refusal_by_one_limit_changes_none(stage: QuotaStage, demand: Demand) -> None:
    await granted(stage, ALL, Demand(1, 40, 1))
    before = await standings(stage)
    await refused(stage, ALL, demand)
    after = await standings(stage)
    assert [astuple(standing)[:3] for standing in after] == [astuple(standing)[:3] for standing in before]


async def test_of_several_limits_the_longest_wait_is_told(stage: QuotaStage) -> None:
    await granted(stage, ALL, Demand(1, 100, 0))
    assert (await refused(stage, ALL, Demand(1, 60, 0))).limit in {TOKENS, DAILY}
    for limits in (ALL, Limits(ALL.windows[::-1])):
        answer = await refused(stage, limits, Demand(1, 60, 1000))
        waits = [(await refused(stage, Limits((limit,)), Demand(1, 60))).wait_s or 0 for limit in (TOKENS, DAILY)]
        assert answer.wait_s == pytest.approx(max(waits), abs=2)


async def test_what_never_fits_is_told_so(stage: QuotaStage) -> None:
    await granted(stage, ALL, Demand(1, 100, 0))
    answer = await refused(stage, ALL, Demand(1, 151, 0))
    assert answer.limit in {TOKENS, DAILY}
    assert answer.wait_s is None


async def test_what_was_not_used_is_given_back(stage: QuotaStage) -> None:
    reservation = await granted(stage, ALL, Demand(1, 100, 1000))
    await stage.store.settle(reservation, Demand(1, 30, 200))
    assert await used(stage) == [1, 30, 30, 200]


async def test_a_failed_exchange_counts_as_a_request_alone(stage: QuotaStage) -> None:
    await stage.store.settle(await granted(stage, ALL, Demand(1, 100, 1000)), Demand(requests=1))
    assert await used(stage) == [1, 0, 0, 0]


async def test_more_than_was_reserved_is_charged_in_full(stage: QuotaStage) -> None:
    await stage.store.settle(await granted(stage, ALL, Demand(1, 10, 10)), Demand(1, 170, 5000))
    assert await used(stage) == [1, 170, 170, 5000]
    assert [standing.remaining for standing in await standings(stage)] == [9, 0, 0, 0]
    assert (await refused(stage, ALL, Demand(1, 0, 0))).limit in {TOKENS, DAILY, SPEND}


async def test_settling_happens_once(stage: QuotaStage) -> None:
    other = await granted(stage, ALL, Demand(1, 20, 20))
    reservation = await granted(stage, ALL, Demand(1, 50, 50))
    await asyncio.gather(*(stage.store.settle(reservation, Demand(1, 10, 10)) for _ in range(5)))
    await stage.store.settle(reservation, Demand(1, 99, 99))
    assert await used(stage) == [2, 30, 30, 30]
    await stage.store.settle(other, Demand(1, 20, 20))
    assert await used(stage) == [2, 30, 30, 30]


async def test_what_the_store_does_not_know_is_left_alone(stage: QuotaStage) -> None:
    reservation = await granted(stage, ALL, Demand(1, 50, 50))
    await stage.store.settle(replace(reservation, id="exc_unknown"), Demand())
    await stage.store.settle(replace(reservation, key_id="unknown"), Demand())
    await stage.store.renew([])
    assert await used(stage) == [1, 50, 50, 50]


async def test_keys_share_nothing(stage: QuotaStage) -> None:
    names = ["team-a", "team-b", "team-a:tokens:60:", "{team-a}", "t\N{LATIN SMALL LETTER E WITH ACUTE}am *?[]\n"]
    for number, key_id in enumerate(names):
        await granted(stage, ALL, Demand(1, number), key_id)
    for number, key_id in enumerate(names):
        assert (await used(stage, ALL, key_id))[:2] == [1, number]


async def test_a_limit_narrowed_to_a_model_counts_for_itself(stage: QuotaStage) -> None:
    narrowed = Limits((TOKENS, TOKENS._replace(amount=50, model="gpt-*")))
    await granted(stage, narrowed, Demand(1, 40))
    await granted(stage, Limits((TOKENS,)), Demand(1, 40))
    assert await used(stage, narrowed) == [80, 40]
    assert (await refused(stage, narrowed, Demand(1, 11))).limit == narrowed.windows[1]


async def test_a_changed_amount_goes_on_with_what_was_used(stage: QuotaStage) -> None:
    await granted(stage, Limits((DAILY,)), Demand(1, 100))
    assert (await refused(stage, Limits((DAILY._replace(amount=120),)), Demand(1, 21))).limit is not None
    await granted(stage, Limits((DAILY._replace(amount=1000),)), Demand(1, 900))


@pytest.mark.parametrize("used_up", [Demand(2**70, 2**70, 2**70), Demand(-(2**70), -1, -5)])
async def test_hostile_amounts_are_cut(stage: QuotaStage, used_up: Demand) -> None:
    limits = Limits((REQUESTS, TOKENS._replace(amount=MAX_AMOUNT), DAILY._replace(amount=MAX_AMOUNT), SPEND))
    await granted(stage, limits, Demand(1, 2, 3))
    await stage.store.settle(await granted(stage, limits, Demand(0, 7, 0)), used_up)
    assert await used(stage, limits) == ([MAX_AMOUNT] * 4 if used_up.tokens > 0 else [1, 2, 2, 3])
    await refused(stage, Limits((TOKENS,)), Demand(1, 2**70, 0))


async def test_a_window_that_refuses_is_named_before_the_slots(stage: QuotaStage) -> None:
    await granted(stage, ONE_SLOT, Demand(1, 100))
    answer = await refused(stage, ONE_SLOT, Demand(1, 1))
    assert answer.limit == TOKENS
    assert answer.wait_s is not None


async def test_no_more_are_admitted_at_once_than_fit(stage: QuotaStage) -> None:
    limits = Limits((TOKENS._replace(window=3600), SPEND), concurrency=12)
    answers = await asyncio.gather(*(reserve(stage, limits, Demand(1, 7, 3)) for _ in range(200)))
    admitted = [answer.reservation for answer in answers if isinstance(answer, Granted)]
    assert len(admitted) == 12
    await asyncio.gather(*(stage.store.settle(reservation, reservation.demand) for reservation in admitted))
    answers = await asyncio.gather(*(reserve(stage, limits, Demand(1, 7, 3)) for _ in range(200)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 2
    assert await used(stage, limits) == [98, 42]


async def test_a_settlement_lands_in_the_window_of_its_reservation(stage: QuotaStage) -> None:
    limits = Limits((TOKENS, DAILY._replace(amount=1000)), concurrency=None)
    stage.advance(60_000 - stage.now_ms() % 60_000)  # a bucket of a minute begins, and a day
    first, second = [await granted(stage, limits, Demand(1, 40)) for _ in range(2)]
    stage.advance(60_000)
    assert await used(stage, limits) == [80, 80]
    await stage.store.settle(first, Demand(1, 10))
    assert await used(stage, limits) == [50, 50]
    stage.advance(30_000)
    assert await used(stage, limits) == [25, 50]
    stage.advance(30_000)
    await stage.store.settle(second, Demand(1, 90))
    assert await used(stage, limits) == [0, 100]
    stage.advance(86_400_000)
    assert await used(stage, limits) == [0, 0]


async def test_a_store_that_has_to_be_waited_for_says_so_and_changes_nothing(stage: QuotaStage) -> None:
    store, limits, demand = stage.store, Limits(ALL.windows, concurrency=1), Demand(1, 60, 400)
    answer = store.reserve_now("exc_now", "team-a", limits, demand)
    is_at_once = answer is not None
    assert await used(stage) == ([1, 60, 60, 400] if is_at_once else [0, 0, 0, 0])
    if answer is None:
        answer = await store.reserve("exc_now", "team-a", limits, demand)
    assert isinstance(answer, Granted)
    assert store.release_now(answer.reservation) == is_at_once
    if is_at_once:
        await granted(stage, limits, Demand(1, 5, 5))
    else:
        await refused(stage, limits, Demand(1, 5, 5))
    before = await used(stage)
    assert store.settle_now(answer.reservation, Demand(1, 30, 200)) == is_at_once
    assert await used(stage) == ([2, 35, 35, 205] if is_at_once else before)
