"""Which upstream serves it, and what exactly is sent there."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

from proxy.core import headers
from proxy.core.ending import StreamShape
from proxy.core.patterns import is_pattern
from proxy.phases.admit import model_not_found
from proxy.phases.authenticate import CREDENTIAL_HEADERS, digest_of, secret_of
from proxy.phases.exchange import Treatment
from proxy.upstream.attempt import UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from proxy.core.headers import RawHeaders
    from proxy.core.patterns import PatternTable
    from proxy.phases.admit import Admission
    from proxy.phases.exchange import Exchange
    from proxy.upstream.pool import UpstreamPool


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an upstream may take, in seconds; None means for ever."""

    first_byte_s: float | None
    idle_s: float | None
    total_s: float | None


class Upstream:
    """A configured model server: where it is, how it is asked, and its connections.

    `auth` is one of bearer, api-key, none, passthrough. Several `api_keys` are used in turn. `secrets` are what of the
    configuration must not come back in an answer.
    """

    def __init__(
        self,
        name: str,
        *,
        pool: UpstreamPool,
        host_header: bytes,
        base_path: str,
        auth: str,
        api_keys: Sequence[bytes],
        extra_headers: RawHeaders,
        query: Mapping[str, str],
        secrets: Sequence[bytes],
        timeouts: Timeouts,
        injects_usage: bool = False,
    ) -> None:
        self.name = name
        self.pool = pool
        self.base_path = base_path
        self.auth = auth
        self.api_keys = tuple(api_keys)
        self.query = dict(query)
        self.secrets = tuple(secrets)
        self.timeouts = timeouts
        self._injects_usage = injects_usage
        self._refusing: set[str | None] = set()  # models for which it refuses `stream_options`
        self._turn = itertools.cycle(self.api_keys)
        self._host = (b"Host", host_header)
        self._extra = list(extra_headers)
        self._overridden = {name.lower() for name, _ in extra_headers}

    def credential(self) -> RawHeaders:
        """The header that authenticates the next request; none where the upstream wants none."""
        if self.auth == "bearer" and self.api_keys:
            return [(b"Authorization", b"Bearer " + next(self._turn))]
        if self.auth == "api-key" and self.api_keys:
            return [(b"api-key", next(self._turn))]
        return []

    def injects_usage(self, model: str | None) -> bool:
        """May Sluice ask for the usage of streams? `model` is the upstream's own name for it."""
        return self._injects_usage and model not in self._refusing

    def refused_usage(self, model: str | None) -> None:
        """Remember that a request without `stream_options` went well where one with them did not."""
        if len(self._refusing) >= _MOST_REFUSING:
            self._refusing.clear()
        self._refusing.add(model)

    def request_headers(self, received: RawHeaders, via: bytes) -> RawHeaders:
        """What goes upstream: what crosses, then ours; configured headers replace any of the same name."""
        crossing = headers.to_upstream(received, forward_credentials=self.auth == "passthrough")
        ours = [(b"Accept-Encoding", b"identity"), (b"Via", via), *self.credential()]
        if self._overridden:
            crossing = [pair for pair in crossing if pair[0].lower() not in self._overridden]
            ours = [pair for pair in ours if pair[0].lower() not in self._overridden]
        return [self._host, *crossing, *ours, *self._extra]

    def target(self, path: str, query: str) -> bytes:
        """The request target: the path under the base URL, with the configured query members taking precedence."""
        if self.query:
            kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in self.query]
            query = urlencode([*kept, *self.query.items()])
        target = self.base_path + path + ("?" + query if query else "")
        return quote(target, safe="%/:=&?~#+!$,;'@()*[]-._|").encode("ascii")


# behind an upstream may be others, one a model; what is forgotten costs a request that is refused again
_MOST_REFUSING: Final = 256
# what a configuration says of a model that it does not name
MAX_OUTPUT_TOKENS: Final = 16384


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """What a pattern of `models` leads to. `rename` is the upstream's own name for the model.

    `max_output_tokens` are reserved where a request names no maximum; `encoding` None: by the model's name.
    """

    upstream: Upstream
    rename: str | None = None
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    encoding: str | None = None


class Router:
    """Which upstream serves a model name: the most specific pattern wins; without patterns, the first upstream."""

    def __init__(self, default: Upstream, patterns: PatternTable, routes: Mapping[str, ModelRoute]) -> None:
        self.default = default
        self._patterns = patterns
        self._routes = dict(routes)

    def find(self, model: str) -> tuple[str, ModelRoute] | None:
        """The pattern that `model` matches and its route; None for an unknown model."""
        if not self._routes:
            return "*", ModelRoute(self.default)
        pattern = self._patterns.match(model)
        return None if pattern is None else (pattern, self._routes[pattern])

    def known(self) -> tuple[list[str], list[Upstream]]:
        """The names that are configured, and the upstreams behind patterns: they alone know theirs."""
        if not self._routes:
            return [], [self.default]
        names = [name for name in self._routes if not is_pattern(name)]
        behind = dict.fromkeys(route.upstream for pattern, route in self._routes.items() if is_pattern(pattern))
        return names, list(behind)


@dataclass(frozen=True, slots=True)
class Route:
    """Where the exchange goes. `label` is the configured pattern: the `model` of metrics.

    `served` is what the upstream calls the model; `asks_usage`: the request asks for usage although the client did not.
    """

    upstream: Upstream
    label: str
    model: ModelRoute
    served: str | None
    request: UpstreamRequest
    asks_usage: bool

    def without_body(self) -> Route:
        """The same once the request is answered (`Admission.without_body`)."""
        return dataclasses.replace(self, request=dataclasses.replace(self.request, body=b""))


def route(exchange: Exchange, admission: Admission, router: Router, via: bytes, *, may_ask_usage: bool = True) -> Route:
    """Choose the upstream and write the request for it. Raises `ProxyError` 404 for an unknown model."""
    label, chosen = "", ModelRoute(router.default)
    if admission.model is not None:
        found = router.find(admission.model)
        if found is None:
            raise model_not_found(exchange.endpoint.name, admission.model)
        label, chosen = found
    upstream = chosen.upstream
    injectable = exchange.endpoint.shape is StreamShape.CHAT and admission.usage_edit is not None
    served = chosen.rename or admission.model
    asks_usage = may_ask_usage and injectable and upstream.injects_usage(served)
    body, length = _body(exchange, admission, chosen.rename, asks_usage=asks_usage)
    received = _received(exchange, admission, upstream)
    metered = exchange.endpoint.treatment is Treatment.METERED
    path = "/" + exchange.endpoint.name if metered else exchange.path
    request = UpstreamRequest(
        exchange.method.encode("ascii"),
        upstream.target(path, exchange.query),
        upstream.request_headers(received, via),
        body,
        length,
    )
    return Route(upstream, label, chosen, served, request, asks_usage)


def _received(exchange: Exchange, admission: Admission, upstream: Upstream) -> RawHeaders:
    """The client's headers, less what must not reach this upstream."""
    received = exchange.headers
    if admission.inflated:
        received = [pair for pair in received if pair[0].lower() != b"content-encoding"]
    if upstream.auth == "passthrough":
        # where there are two credentials, one is for Sluice alone, the other for the upstream
        credentials = [pair for pair in received if pair[0].lower() in CREDENTIAL_HEADERS]
        ours = [pair for pair in credentials if digest_of(secret_of(pair)) == admission.principal.digest]
        if len(ours) < len(credentials):
            received = [pair for pair in received if pair not in ours]
    return received


def _body(
    exchange: Exchange, admission: Admission, rename: str | None, *, asks_usage: bool
) -> tuple[bytes | AsyncIterator[bytes], int | None]:
    """The body to send, and its length where it streams and the length is known."""
    body = admission.edited(rename if rename != admission.model else None, asks_usage=asks_usage)
    if admission.rest is None:
        return body, None
    if exchange.body.is_empty and not body:
        return b"", None
    announced = exchange.body.content_length
    length = None if announced is None else announced + len(body) - len(admission.body)
    return _followed_by(body, admission.rest), length


async def _followed_by(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in rest:
        yield piece
