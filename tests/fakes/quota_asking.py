"""Asking a store of quotas, and saying what the answer must be."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from proxy.core.quota import Calendar, Demand, Granted, Kind, Limit, Limits, Refused

if TYPE_CHECKING:
    from proxy.core.quota import Reservation, Standing
    from tests.fakes.quotas import QuotaStage

REQUESTS: Final = Limit(Kind.REQUESTS, 10, 60)
TOKENS: Final = Limit(Kind.TOKENS, 100, 60)
DAILY: Final = Limit(Kind.TOKENS, 150, Calendar.DAY)
SPEND: Final = Limit(Kind.SPEND, 1000, Calendar.MONTH)
ALL: Final = Limits((REQUESTS, TOKENS, DAILY, SPEND))
ONE_SLOT: Final = Limits((TOKENS,), concurrency=1)


_ids = (f"exc_{number}" for number in itertools.count())


async def reserve(stage: QuotaStage, limits: Limits, demand: Demand, key_id: str = "team-a") -> Granted | Refused:
    return await stage.store.reserve(next(_ids), key_id, limits, demand)


async def granted(stage: QuotaStage, limits: Limits, demand: Demand, key_id: str = "team-a") -> Reservation:
    answer = await reserve(stage, limits, demand, key_id)
    assert isinstance(answer, Granted), answer
    return answer.reservation


async def refused(stage: QuotaStage, limits: Limits, demand: Demand, key_id: str = "team-a") -> Refused:
    answer = await reserve(stage, limits, demand, key_id)
    assert isinstance(answer, Refused), answer
    return answer


async def standings(stage: QuotaStage, limits: Limits = ALL, key_id: str = "team-a") -> tuple[Standing, ...]:
    """Where the limits stand, by a demand of nothing that is given back."""
    answer = await reserve(stage, limits, Demand(), key_id)
    if isinstance(answer, Granted):
        await stage.store.settle(answer.reservation, Demand())
    return answer.stands.standings()


async def used(stage: QuotaStage, limits: Limits = ALL, key_id: str = "team-a") -> list[int]:
    return [standing.used for standing in await standings(stage, limits, key_id)]
