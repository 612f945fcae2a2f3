"""Upstreams and routes that nothing is sent to."""

from __future__ import annotations

from typing import Any, cast

from proxy.core.circuit import Circuit
from proxy.core.cooldown import Credentials
from proxy.core.retry_budget import RetryBudget
from proxy.phases.route import Model, Route
from proxy.phases.upstreams import Health, Timeouts, Upstream


def health(keys: int = 2, max_concurrency: int | None = None, **breaker: Any) -> Health:
    settings: dict[str, Any] = {"failures": 5, "cooldown_s": 10.0, "max_cooldown_s": 300.0, **breaker}
    return Health(Circuit(**settings), Credentials(keys), RetryBudget(0.2), max_concurrency)


def upstream(name: str = "up", **settings: Any) -> Upstream:
    defaults: dict[str, Any] = {
        "pool": cast("Any", None),
        "health": health(),
        "host_header": b"upstream.test",
        "base_path": "/v1",
        "auth": "bearer",
        "api_keys": [b"k1", b"k2"],
        "extra_headers": [],
        "query": {},
        "secrets": [],
        "timeouts": Timeouts(None, None, None),
    }
    return Upstream(name, **{**defaults, **settings})


def model(at: Upstream, rename: str | None = None) -> Model:
    return Model((Route(at, rename),))
