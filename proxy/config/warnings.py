"""What is allowed in a configuration and still worth saying: before `serve` starts, and by `check-config`."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from proxy.config.prices import prices_of
from proxy.config.problems import dotted
from proxy.config.upstreams import RouteConfig
from proxy.config.values import is_in_memory
from proxy.core.patterns import PatternTable, is_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxy.config.settings import Config
    from proxy.core.pricing import PriceList

_SHORTEST_SECRET: Final = 16


def warnings(config: Config) -> list[str]:
    """Lines for the operator about what is allowed but unwise or missing."""
    return [*_about_keys(config), *_about_plans(config), *_about_exposure(config), *_about_operators(config)]


def _about_keys(config: Config) -> Iterator[str]:
    if not config.keys:
        yield (
            "there are no keys in the configuration: every request is refused with 401 until there is one; make one "
            "with `sluice keys create ID`"
        )
    elif not config.plans:
        yield "there are no plans: keys have no limits"
    else:
        unlimited = [key.id for key in config.keys if key.plan is None and key.limits is None]
        if unlimited:
            yield f"keys without a plan have no limits: {_some(unlimited)}"
    short = [key.id for key in config.keys if key.secret is not None and len(key.secret.reveal()) < _SHORTEST_SECRET]
    if short:
        yield f"keys whose secret is shorter than {_SHORTEST_SECRET} characters can be guessed: {_some(short)}"


def _about_plans(config: Config) -> Iterator[str]:
    """Plans that promise what is not there, or bound what nobody counts. Names behind patterns are the upstreams'."""
    named = [name for name in config.models if not is_pattern(name)]
    patterns = PatternTable(config.models)
    prices = prices_of(config)
    for name, plan in config.plans.items():
        wanted = [model for model in plan.models if not is_pattern(model)]
        unserved = [model for model in wanted if config.models and patterns.match(model) is None]
        if unserved:
            yield f"{dotted(('plans', name, 'models'))} has models that no entry of `models` serves: {_some(unserved)}"
        has_budget = plan.spend or any(limits.spend for limits in plan.model_limits.values())
        allowed = PatternTable(plan.models)
        free = [model for model in named if allowed.match(model) is not None and _is_unpriced(model, config, prices)]
        if has_budget and free:
            yield f"{dotted(('plans', name))} limits spending, but nobody knows the price of: {_some(free)}"


def _is_unpriced(model: str, config: Config, prices: PriceList) -> bool:
    routes = config.models[model].routes or (RouteConfig(),)
    return any(prices.find(model, route.model or model) is None for route in routes)


def _about_exposure(config: Config) -> Iterator[str]:
    if is_in_memory(config.ledger.url):
        yield "ledger.url is in memory: usage, and keys made at run time, are gone when the process ends"
    if not _is_loopback(config.server.host) and config.server.tls.certificate is None:
        yield f"server.host {config.server.host} is reachable from elsewhere without TLS: keys travel in the clear"
    for name, upstream in config.upstreams.items():
        parts = urlsplit(upstream.base_url)
        if parts.scheme == "http" and upstream.auth != "none" and not _is_loopback(parts.hostname or ""):
            yield f"{dotted(('upstreams', name, 'base_url'))} is http: credentials travel in the clear"
        if not upstream.tls.verify:
            yield f"{dotted(('upstreams', name, 'tls', 'verify'))} is false: whoever is on the way can pose as it"


def _about_operators(config: Config) -> Iterator[str]:
    host, token = config.ops.host, config.ops.admin_token.reveal()
    if not _is_loopback(host):
        yield f"ops.host {host} is reachable from elsewhere: metrics are shown to whoever asks"
        if token:
            yield "ops.admin_token travels in the clear, unless a proxy with TLS stands before ops.host"
    if 0 < len(token) < _SHORTEST_SECRET:
        yield f"ops.admin_token is shorter than {_SHORTEST_SECRET} characters and can be guessed"


def _some(names: Sequence[str], most: int = 30) -> str:
    """A list for people: all of it up to `most`, then how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
