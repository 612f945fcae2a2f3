"""The quick way to a place, and the general one: they give the same."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from proxy.core import errors
from proxy.phases.route import Route
from tests.fakes.routing_places import Stage, at

if TYPE_CHECKING:
    from proxy.phases.places import Place


def offered(draw: random.Random, count: int) -> list[Route]:
    """Routes to upstreams in all kinds of states."""
    routes = []
    for number in range(count):
        to = at(f"u{number}", draw.choice([None, 1, 2]), keys=draw.choice([1, 2]), failures=1, cooldown_s=10.0)
        routes.append(Route(to, weight=draw.choice([1.0, 3.0]), priority=draw.choice([0, 0, 1])))
        health = to.health
        health.in_flight = draw.choice([0, 0, 1, 2])
        health.is_drained = draw.random() < 0.2
        health.is_probed = draw.random() < 0.2
        if draw.random() < 0.4:
            health.circuit.failed(None, draw.choice([985.0, 995.0]))
        for key in range(len(to.api_keys)):
            if draw.random() < 0.3:
                health.credentials.cool(key, draw.choice([999.0, 1001.0]))
    return routes


def stands(stage: Stage, routes: list[Route], place: Place) -> tuple[object, ...]:
    """What taking a place changes."""
    healths = [route.upstream.health for route in routes]
    gauges = stage.gauge("sluice_upstream_in_flight", place.upstream.name)
    inner = [(one.in_flight, one.circuit.admits(stage.now_s), one.budget._requests._total) for one in healths]
    return routes.index(place.route), place.api_key, inner, gauges


async def test_a_place_at_once_is_the_one_that_would_have_been_given_anyway() -> None:
    given = 0
    for seed in range(500):
        count = random.Random(seed).choice([1, 1, 2, 3])
        quick, slow = (Stage(), offered(random.Random(seed), count)), (Stage(), offered(random.Random(seed), count))
        for stage, _ in (quick, slow):
            stage.drawn = random.Random(seed).random()
        for _ in range(3):
            place = quick[0].balancer.at_once(quick[0].ask(*quick[1]))
            if place is None:
                with pytest.raises((errors.ProxyError, TimeoutError)):
                    await asyncio.wait_for(slow[0].balancer.place(slow[0].ask(*slow[1])), 0.001)
                break
            reference = await slow[0].balancer.place(slow[0].ask(*slow[1]))
            assert stands(quick[0], quick[1], place) == stands(slow[0], slow[1], reference)
            given += 1
    assert given > 300
