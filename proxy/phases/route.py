"""Which upstreams may serve it, and what exactly is sent to the one that is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.core.patterns import Remembered, is_pattern
from proxy.phases.admit import model_not_found
from proxy.phases.authenticate import CREDENTIAL_HEADERS, digest_of, secret_of
from proxy.upstream.attempt import UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from proxy.core.headers import RawHeaders
    from proxy.core.patterns import PatternTable
    from proxy.phases.admit import Admission
    from proxy.phases.exchange import Exchange
    from proxy.phases.tracing import Hop
    from proxy.phases.upstreams import Upstream

# what a configuration says of a model that it does not name
MAX_OUTPUT_TOKENS: Final = 16384


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One way to serve a model. `rename` is the upstream's own name for it.

    `weight` is its share among the routes of the same priority, of which the lowest comes first.
    """

    upstream: Upstream
    rename: str | None = None
    weight: float = 1.0
    priority: int = 0

    @property
    def in_flight(self) -> int:
        """How many exchanges its upstream serves."""
        return self.upstream.health.in_flight


@dataclass(frozen=True, slots=True)
class Model:
    """What a pattern of `models` leads to: at least one route, in the order of their priorities.

    `max_output_tokens` are reserved where a request names no maximum; `encoding` None: by the model's name.
    """

    routes: tuple[Route, ...]
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What serves the exchange. `label` is the configured pattern: the `model` of metrics."""

    label: str
    model: Model


class Router:
    """What serves a model's name: the most specific pattern wins; without patterns, the first upstream.

    `find` gives the target of a name, None for an unknown one; `unnamed` serves a request that names no model.
    """

    def __init__(self, default: Upstream, patterns: PatternTable, models: Mapping[str, Model]) -> None:
        self.default = Model((Route(default),))
        self.unnamed = Target("", self.default)
        self.find: Callable[[str], Target | None] = Remembered(self._find).__getitem__
        self._patterns = patterns
        self._models = dict(models)
        self._any = Target("*", self.default)
        self._targets = {pattern: Target(pattern, model) for pattern, model in models.items()}

    def _find(self, model: str) -> Target | None:
        if not self._models:
            return self._any
        pattern = self._patterns.match(model)
        return None if pattern is None else self._targets[pattern]

    def known(self) -> tuple[list[str], list[Upstream]]:
        """The names that are configured, and the upstreams behind patterns: they alone know theirs."""
        if not self._models:
            return [], [self.default.routes[0].upstream]
        names = [name for name in self._models if not is_pattern(name)]
        behind = [route.upstream for name, model in self._models.items() if is_pattern(name) for route in model.routes]
        return names, list(dict.fromkeys(behind))


def find(exchange: Exchange, admission: Admission, router: Router) -> Target:
    """What may serve the exchange. Raises `ProxyError` 404 for an unknown model."""
    if admission.model is None:
        return router.unnamed
    target = router.find(admission.model)
    if target is None:
        raise model_not_found(exchange.endpoint.name, admission.model)
    return target


class Upload:
    """A body that is not held: what was read of it, then the rest. It can be sent once; `is_spent` once it began."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes]) -> None:
        self._first = first
        self._rest = rest
        self.is_spent = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.is_spent = True
        if self._first:
            yield self._first
        async for piece in self._rest:
            yield piece


class Sending(msgspec.Struct, frozen=True, eq=False):
    """A request as one route's upstream gets it.

    `served` is what the upstream calls the model; `api_key` the place of the key that is used; `asks_usage`: the
    request asks for usage although the client did not.
    """

    route: Route
    served: str | None
    api_key: int
    request: UpstreamRequest
    asks_usage: bool
    hop: Hop | None = None  # its part of the trace

    @property
    def upstream(self) -> Upstream:
        """Who gets it."""
        return self.route.upstream

    @property
    def is_spent(self) -> bool:
        """It cannot be sent again: part of its body was streamed and is gone."""
        return isinstance(self.request.body, Upload) and self.request.body.is_spent


def write(
    exchange: Exchange, admission: Admission, route: Route, api_key: int, via: bytes, *, may_ask_usage: bool = True
) -> Sending:
    """The request for the upstream of `route`, with the key at place `api_key`."""
    upstream, endpoint = route.upstream, exchange.endpoint
    asked, usage_edit, rename = admission.model, admission.usage_edit, route.rename
    served = rename or asked
    asks_usage = (
        usage_edit is not None and may_ask_usage and endpoint.shape == "chat" and upstream.injects_usage(served)
    )
    held = admission.body
    if asks_usage or rename is not None:
        held = admission.edited(rename if rename != asked else None, asks_usage=asks_usage)
    body, length = (held, None) if admission.rest is None else _upload(exchange, admission, held, admission.rest)
    received = exchange.headers
    if admission.inflated or upstream.auth == "passthrough":
        received = _received(exchange, admission, upstream)
    if endpoint.treatment == "metered":
        target = upstream.endpoint_target(endpoint.name, exchange.query)
    else:
        target = upstream.target(exchange.path, exchange.query)
    hop = trace = None
    if exchange.trace is not None:
        hop = exchange.trace.ask(upstream, served)
        trace = hop.headers()
    headers = upstream.request_headers(received, via, api_key, trace)
    request = UpstreamRequest(exchange.method.encode("ascii"), target, headers, body, length)
    return Sending(route, served, api_key, request, asks_usage, hop)


def _received(exchange: Exchange, admission: Admission, upstream: Upstream) -> RawHeaders:
    """The client's headers, less what must not reach this upstream."""
    received = exchange.headers
    if admission.inflated:
        received = [pair for pair in received if pair[0].lower() != b"content-encoding"]
    if upstream.auth == "passthrough":
        # where there are two credentials, one is for Sluice alone, the other for the upstream
        credentials = [pair for pair in received if pair[0].lower() in CREDENTIAL_HEADERS]
        ours = [pair for pair in credentials if digest_of(secret_of(*pair)) == admission.principal.digest]
        if len(ours) < len(credentials):
            received = [pair for pair in received if pair not in ours]
    return received


def _upload(
    exchange: Exchange, admission: Admission, first: bytes, rest: AsyncIterator[bytes]
) -> tuple[bytes | Upload, int | None]:
    """A body of which `first` is held, and its length where that is known."""
    if exchange.body.is_empty and not first:
        return b"", None
    announced = exchange.body.content_length
    length = None if announced is None else announced + len(first) - len(admission.body)
    return Upload(first, rest), length
