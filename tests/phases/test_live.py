"""Exchanges under way: how many there are in each phase, and when there is none."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from proxy.phases.live import LiveExchanges
from tests.fakes.arrived import arrived
from tests.fakes.waiting import LONG_S

PHASES = ["authenticate", "admit", "route", "queue", "forward", "relay", "settle"]


def this_task() -> asyncio.Task[Any]:
    return cast("asyncio.Task[Any]", asyncio.current_task())


async def test_each_exchange_is_in_the_phase_that_it_entered_last() -> None:
    live, task = LiveExchanges(), this_task()
    assert live.by_phase() == dict.fromkeys(PHASES, 0)
    exchanges = [arrived() for _ in range(3)]
    for exchange in exchanges:
        live.add(exchange, task)
    exchanges[1].timeline.enter("relay")
    exchanges[2].timeline.enter("relay")
    in_thread = await asyncio.to_thread(live.by_phase)
    assert in_thread == dict.fromkeys(PHASES, 0) | {"authenticate": 1, "relay": 2}
    assert list(in_thread) == PHASES
    for exchange in exchanges:
        exchange.timeline.enter("done")
        live.remove(exchange)
    assert live.by_phase() == dict.fromkeys(PHASES, 0)


async def test_all_who_wait_for_none_to_be_live_are_told_and_those_who_come_later_at_once() -> None:
    live, task = LiveExchanges(), this_task()
    await live.idle()
    for _ in range(2):  # it may be busy and idle again
        first, second = arrived(), arrived()
        live.add(first, task)
        live.add(second, task)
        waiting = [asyncio.ensure_future(live.idle()) for _ in range(2)]
        await asyncio.sleep(0)
        live.remove(first)
        await asyncio.sleep(0)
        assert [one.done() for one in waiting] == [False, False]
        live.remove(second)
        await asyncio.wait_for(asyncio.gather(*waiting), LONG_S)
        await live.idle()


def test_an_exchange_shows_neither_its_query_nor_its_headers() -> None:
    exchange = arrived(headers=[(b"Authorization", b"Bearer sk-1234")], query="api_key=sk-1234")
    assert "sk-1234" not in repr(exchange)
    assert "sl_test" in repr(exchange)
