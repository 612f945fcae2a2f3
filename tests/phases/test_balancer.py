"""Places at upstreams: who is chosen, who waits, who is told not to, and that nobody holds one by mistake."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from proxy.core import errors
from proxy.core.circuit import State
from proxy.phases.route import Route
from tests.fakes.routing_places import Stage, at
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from proxy.phases.places import Ask, Place


def begun(stage: Stage, ask: Ask) -> asyncio.Task[Place]:
    """An exchange that asks in a task of its own."""
    return asyncio.get_running_loop().create_task(stage.balancer.place(ask))


async def waits(stage: Stage, *asks: Ask) -> list[asyncio.Task[Place]]:
    """Exchanges that wait, one after the other."""
    tasks = []
    for ask in asks:
        before = stage.waiting
        tasks.append(begun(stage, ask))
        await until(lambda: stage.waiting == before + 1, "it waits")  # noqa: B023 - used at once
    return tasks


async def refused(task: asyncio.Task[Place]) -> errors.ProxyError:
    with pytest.raises(errors.ProxyError) as caught:
        await task
    return caught.value


async def test_the_lowest_priority_that_has_room_comes_first() -> None:
    stage = Stage()
    first, second = Route(at("a", 1), priority=0), Route(at("b", 2), priority=1)
    places = [await stage.balancer.place(stage.ask(second, first)) for _ in range(3)]
    assert [place.route for place in places] == [first, second, second]
    places[0].leave()
    assert (await stage.balancer.place(stage.ask(first, second))).route is first
    assert (stage.gauge("sluice_upstream_in_flight", "a"), stage.gauge("sluice_upstream_in_flight", "b")) == (1, 2)
    assert stage.waits == 0


async def test_equal_routes_share_by_weight() -> None:
    stage = Stage()
    routes = Route(at("a"), weight=3.0), Route(at("b"), weight=1.0)
    shares: Counter[str] = Counter()
    for number in range(400):
        stage.drawn = number * 0.618 % 1
        shares[(await stage.balancer.place(stage.ask(*routes))).upstream.name] += 1
    assert abs(shares["a"] - 300) <= 2


async def test_upstreams_that_are_open_or_drained_are_passed_over() -> None:
    stage = Stage()
    first, second = Route(at("a", failures=1)), Route(at("b"), priority=1)
    (await stage.balancer.place(stage.ask(first))).failed()
    assert (await stage.balancer.place(stage.ask(first, second))).route is second
    second.upstream.health.is_drained = True
    error = await refused(begun(stage, stage.ask(first, second)))
    assert (error.kind, error.retry_after_s) == (errors.NO_UPSTREAM, 10.0)
    stage.now_s += 10
    assert (await stage.balancer.place(stage.ask(first, second))).route is first
    assert stage.gauge("sluice_upstream_circuit", "a") == State.HALF_OPEN


async def test_keys_that_cool_down_come_last_but_come() -> None:
    stage = Stage()
    first, second = Route(at("a")), Route(at("b"), priority=1)
    place = await stage.balancer.place(stage.ask(first, second))
    stage.balancer.answered(place, 429, 30.0)
    place.leave()
    assert (await stage.balancer.place(stage.ask(first, second))).route is second
    assert (await stage.balancer.place(stage.ask(first))).route is first, "where there is no other"


async def test_a_waiter_gets_the_next_place_and_first_come_is_first_served() -> None:
    stage = Stage()
    only = Route(at("a", 1))
    holding = await stage.balancer.place(stage.ask(only))
    first, second = await waits(stage, stage.ask(only), stage.ask(only))
    assert stage.gauge("sluice_queue_waiting", "a") == stage.waits == 2
    holding.leave()
    holding.leave()
    place = await first
    assert (stage.waiting, only.upstream.health.in_flight, second.done()) == (1, 1, False)
    place.leave()
    (await second).leave()
    assert (stage.waiting, only.upstream.health.in_flight) == (0, 0)


async def test_who_waits_for_several_takes_whichever_is_free_first() -> None:
    stage = Stage()
    routes = Route(at("a", 1)), Route(at("b", 1))
    held = [await stage.balancer.place(stage.ask(one)) for one in routes]
    [waiting] = await waits(stage, stage.ask(*routes))
    held[1].leave()
    assert (await waiting).route is routes[1]
    assert stage.gauge("sluice_queue_waiting", "a") == stage.gauge("sluice_queue_waiting", "b") == 0


async def test_who_may_wait_again_only_where_it_was_already_tried_waits_there() -> None:
    """The one route that it did not try is not asked any more: the one that it did try has no room just now."""
    stage = Stage()
    tried, down = Route(at("a", 1)), Route(at("b", failures=1))
    (await stage.balancer.place(stage.ask(down))).failed()
    holding = await stage.balancer.place(stage.ask(tried))
    [waiting] = await waits(stage, stage.ask(tried, down, tried=(tried,)))
    holding.leave()
    assert (await asyncio.wait_for(waiting, LONG_S)).route is tried


async def test_who_waits_only_for_what_opens_is_told() -> None:
    stage = Stage()
    bad, good = Route(at("a", 1, failures=1)), Route(at("b", 1))
    holding = await stage.balancer.place(stage.ask(bad))
    other = await stage.balancer.place(stage.ask(good))
    hopeless, hopeful = await waits(stage, stage.ask(bad), stage.ask(bad, good))
    holding.failed()
    error = await refused(hopeless)
    assert (error.kind, error.retry_after_s) == (errors.NO_UPSTREAM, 10.0)
    other.leave()
    assert (await hopeful).route is good
    assert stage.waiting == 0


async def test_the_wait_that_is_told_is_what_the_queue_will_take() -> None:
    """Two places, four seconds each: with six ahead, three rounds and one's own."""
    stage = Stage(max_waiting=6)
    only = Route(at("a", 2))
    for _ in range(2):
        place = await stage.balancer.place(stage.ask(only))
        stage.now_s += 4
        place.leave()
    for _ in range(2):
        await stage.balancer.place(stage.ask(only))
    tasks = await waits(stage, *(stage.ask(only) for _ in range(6)))
    error = await refused(begun(stage, stage.ask(only)))
    assert (error.kind, error.retry_after_s) == (errors.QUEUE_FULL, 14.0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert stage.waiting == 0


async def test_a_wait_ends_in_time() -> None:
    stage = Stage(max_wait_s=0.01)
    only = Route(at("a", 1))
    holding = await stage.balancer.place(stage.ask(only))
    error = await refused(begun(stage, stage.ask(only)))
    assert (error.kind, error.retry_after_s, stage.waiting) == (errors.QUEUE_TIMEOUT, 1.0, 0)
    holding.leave()
    assert only.upstream.health.in_flight == 0


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("freed_first", [True, False])
async def test_who_leaves_as_his_place_comes_gives_it_back(turns: int, *, freed_first: bool) -> None:
    stage = Stage()
    only = Route(at("a", 1))
    holding = await stage.balancer.place(stage.ask(only))
    leaving, staying = await waits(stage, stage.ask(only), stage.ask(only))
    if freed_first:
        holding.leave()
    for _ in range(turns if freed_first else 0):
        await asyncio.sleep(0)
    got_it = leaving.done()
    leaving.cancel()
    if not freed_first:
        holding.leave()
    if got_it:
        leaving.result().leave()
    place = await asyncio.wait_for(staying, LONG_S)
    assert (stage.waiting, only.upstream.health.in_flight) == (0, 1)
    place.leave()
    assert only.upstream.health.in_flight == 0


async def test_nothing_learned_gives_the_permission_to_ask_back() -> None:
    stage = Stage()
    only = Route(at("a", failures=1))
    (await stage.balancer.place(stage.ask(only))).failed()
    stage.now_s += 10
    asking = await stage.balancer.place(stage.ask(only))
    error = await refused(begun(stage, stage.ask(only)))
    assert (error.kind, error.retry_after_s) == (errors.NO_UPSTREAM, 1.0)
    asking.leave()
    stage.balancer.answered(await stage.balancer.place(stage.ask(only)), 200, None)
    assert stage.gauge("sluice_upstream_circuit", "a") == State.CLOSED


@pytest.mark.parametrize(("status", "fails"), [(200, False), (400, False), (429, False), (500, True), (529, True)])
async def test_what_a_status_says_of_an_upstream(status: int, *, fails: bool) -> None:
    stage = Stage()
    only = Route(at("a", failures=1))
    stage.balancer.answered(await stage.balancer.place(stage.ask(only)), status, None)
    assert only.upstream.health.circuit.is_open is fails


async def test_tries_of_one_exchange_count_once_and_its_retries_are_spent() -> None:
    """Also where there is one route alone, which is tried as if it had not been."""
    stage = Stage()
    only = Route(at("a", failures=1000, least_results=1000))
    spent = 0
    for _ in range(50):
        ask = stage.ask(only)
        for _ in range(3):
            place = await stage.balancer.place(ask)
            place.failed()
            place.leave()
            spent += ask.spends
            ask.spends = True
            ask.tried = ()
            if not stage.balancer.can_go_anywhere(ask):
                break
    assert spent == 50 / 5 + 3


async def test_a_route_that_was_not_tried_is_taken_at_once_or_not_at_all() -> None:
    stage = Stage()
    first, second = Route(at("a")), Route(at("b", 1))
    ask = stage.ask(first, second)
    assert (await stage.balancer.place(stage.ask(second))).route is second
    assert (await stage.balancer.place(ask)).route is first
    assert stage.balancer.place_now(ask) is None
    assert stage.waiting == 0


async def test_who_waits_is_let_to_an_upstream_whose_cool_down_ends() -> None:
    """Nobody comes, and nobody leaves: time alone makes the place."""
    stage = Stage()
    down, full = Route(at("a", failures=1, cooldown_s=0.05)), Route(at("b", 1))
    (await stage.balancer.place(stage.ask(down))).failed()
    await stage.balancer.place(stage.ask(full))
    [waiting] = await waits(stage, stage.ask(down, full))
    stage.now_s += 0.05
    assert (await asyncio.wait_for(waiting, LONG_S)).route is down


async def test_nobody_gets_a_place_at_once_while_others_wait() -> None:
    stage = Stage()
    busy, idle = Route(at("a", 1)), Route(at("b"))
    holding = await stage.balancer.place(stage.ask(busy))
    [waiting] = await waits(stage, stage.ask(busy))
    assert stage.balancer.at_once(stage.ask(busy, idle)) is None
    holding.leave()
    (await waiting).leave()
    assert stage.balancer.at_once(stage.ask(busy, idle)) is not None
