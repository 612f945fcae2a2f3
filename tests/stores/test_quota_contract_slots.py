"""The contract of every store of quotas about slots: taken, released, kept, and free again when nobody keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.core.quota import LEASE_MS, Demand, Granted, Limits
from tests.fakes.quota_asking import ALL, ONE_SLOT, TOKENS, granted, refused, reserve, used

if TYPE_CHECKING:
    from tests.fakes.quotas import QuotaStage


@pytest.fixture(params=["redis_stage"])
def leased_stage(request: pytest.FixtureRequest) -> QuotaStage:
    """Each store whose slots come back when nobody renews them."""
    made: QuotaStage = request.getfixturevalue(request.param)
    assert made.lease_ms == LEASE_MS
    return made


async def test_a_slot_is_free_the_moment_its_exchange_is_settled(stage: QuotaStage) -> None:
    for _ in range(20):
        reservation = await granted(stage, ONE_SLOT, Demand(1, 5))
        answer = await refused(stage, ONE_SLOT, Demand(1, 5))
        assert (answer.limit, answer.wait_s) == (None, None)
        await stage.store.settle(reservation, Demand(1))


async def test_leases_run_out_unless_they_are_renewed(leased_stage: QuotaStage) -> None:
    reservation = await granted(leased_stage, ONE_SLOT, Demand(1, 5))
    leased_stage.advance(LEASE_MS - 1)
    await leased_stage.store.renew([reservation])
    leased_stage.advance(LEASE_MS - 1)
    await refused(leased_stage, ONE_SLOT, Demand(1, 5))
    leased_stage.advance(1)
    await granted(leased_stage, ONE_SLOT, Demand(1, 5))


async def test_what_was_thought_dead_is_settled_all_the_same(leased_stage: QuotaStage) -> None:
    limits = Limits((TOKENS._replace(window=3600),), concurrency=1)
    reservation = await granted(leased_stage, limits, Demand(1, 50))
    leased_stage.advance(LEASE_MS)
    other = await granted(leased_stage, limits, Demand(1, 20))
    await leased_stage.store.settle(reservation, Demand(1, 5))
    await refused(leased_stage, limits, Demand(1, 1))
    await leased_stage.store.settle(other, Demand(1, 20))
    assert isinstance(await reserve(leased_stage, limits, Demand(1, 1)), Granted)


async def test_a_slot_is_taken_again_by_a_late_renewal_but_not_after_settling(leased_stage: QuotaStage) -> None:
    reservation = await granted(leased_stage, ONE_SLOT, Demand(1, 5))
    leased_stage.advance(LEASE_MS + 1)
    await leased_stage.store.settle(await granted(leased_stage, ONE_SLOT, Demand(1, 5)), Demand(1))
    await leased_stage.store.renew([reservation])
    await refused(leased_stage, ONE_SLOT, Demand(1, 5))
    await leased_stage.store.settle(reservation, Demand(1))
    await leased_stage.store.renew([reservation])
    await granted(leased_stage, ONE_SLOT, Demand(1, 5))


async def test_a_slot_that_is_kept_is_taken_however_long_it_lasts(stage: QuotaStage) -> None:
    reservation = await granted(stage, ONE_SLOT, Demand(1, 5))
    for _ in range(10):
        stage.advance(LEASE_MS - 1)
        await stage.store.renew([reservation])
        await refused(stage, ONE_SLOT, Demand(1, 5))
    await stage.store.settle(reservation, Demand(1))
    await granted(stage, ONE_SLOT, Demand(1, 5))


async def test_a_released_slot_is_free_while_its_amounts_stay_reserved(stage: QuotaStage) -> None:
    limits = Limits(ALL.windows, concurrency=1)
    reservation = await granted(stage, limits, Demand(1, 40, 40))
    await refused(stage, limits, Demand(1, 1))
    for _ in range(2):
        await stage.store.release(reservation)
        await stage.store.renew([reservation])
        assert await used(stage) == [1, 40, 40, 40]
    other = await granted(stage, limits, Demand(1, 20, 20))
    await stage.store.release(reservation)
    await refused(stage, limits, Demand(1, 1))
    assert await used(stage) == [2, 60, 60, 60]
    for _ in range(2):
        await stage.store.settle(reservation, Demand(1, 5, 7))
        await stage.store.release(reservation)
        await stage.store.renew([reservation])
        assert await used(stage) == [2, 25, 25, 27]
        await refused(stage, limits, Demand(1, 1))
    await stage.store.settle(other, Demand(1, 20, 20))
    await granted(stage, limits, Demand(1, 1))


async def test_what_is_settled_or_unknown_has_nothing_to_release(stage: QuotaStage) -> None:
    settled = await granted(stage, ALL, Demand(1, 50, 50))
    await stage.store.settle(settled, Demand(1, 10, 10))
    await stage.store.release(settled)
    assert await used(stage) == [1, 10, 10, 10]
    unlimited = await granted(stage, Limits((), concurrency=1), Demand(1))
    await stage.store.release(unlimited)
    await stage.store.renew([unlimited])
    again = await granted(stage, Limits((), concurrency=1), Demand(1))
    await stage.store.settle(unlimited, Demand(1))
    await refused(stage, Limits((), concurrency=1), Demand(1))
    await stage.store.settle(again, Demand(1))


async def test_the_record_of_a_released_exchange_outlives_its_lease(stage: QuotaStage) -> None:
    limits = Limits((TOKENS._replace(window=3600),), concurrency=1)
    reservation = await granted(stage, limits, Demand(1, 50))
    await stage.store.release(reservation)
    stage.advance(LEASE_MS + 1)
    await stage.store.renew([reservation])
    stage.advance(LEASE_MS + 1)
    await granted(stage, limits, Demand(1, 20))
    await stage.store.settle(reservation, Demand(1, 5))
    assert await used(stage, limits) == [25]
    await refused(stage, limits, Demand(1, 1))
