"""What exchanges are told that get no place: how long to wait before they come again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.phases.route import Route

_LEAST_RETRY_S: Final = 1.0
_MOST_RETRY_S: Final = 60.0
_DRAINED_RETRY_S: Final = 10.0  # when an operator lets it back is not known


def expected_wait_s(routes: Sequence[Route], waiting: Callable[[str], int]) -> float:
    """How long one who came now would wait for a place on one of `routes`; `waiting` counts those at an upstream.

    So many before him, served at the rate of late.
    """
    upstreams = {route.upstream for route in routes}
    rate = sum((one.health.max_concurrency or 1) / one.health.held_s for one in upstreams if one.health.held_s)
    ahead = max(waiting(upstream.name) for upstream in upstreams) + 1
    return min(max(ahead / rate, _LEAST_RETRY_S), _MOST_RETRY_S) if rate else _LEAST_RETRY_S


def no_upstream(routes: Sequence[Route], now_s: float) -> errors.ProxyError:
    """The error where none of `routes` may be asked: one of them may as soon as its circuit lets pass."""
    waits_s = [
        _DRAINED_RETRY_S if route.upstream.health.is_drained else route.upstream.health.circuit.retry_in_s(now_s)
        for route in routes
    ]
    message = "No upstream serves this model at the moment."
    return errors.ProxyError(errors.NO_UPSTREAM, message, retry_after_s=max(min(waits_s), _LEAST_RETRY_S))
