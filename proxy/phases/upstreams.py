"""A configured model server: how it is asked, and how it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

from proxy.core.circuit import State
from proxy.core.headers import Crossing, Stop
from proxy.core.tracing import CONTEXT_HEADERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.core.circuit import Circuit
    from proxy.core.cooldown import Credentials
    from proxy.core.headers import RawHeaders
    from proxy.core.retry_budget import RetryBudget
    from proxy.upstream.pool import UpstreamPool

# behind an upstream may be others, one a model; what is forgotten costs a request that is refused again
_MOST_REFUSING: Final = 256


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an upstream may take, in seconds; None means for ever."""

    first_byte_s: float | None
    idle_s: float | None
    total_s: float | None


@dataclass(frozen=True, slots=True)
class Probe:
    """What an upstream whose circuit is open is asked with GET, and how often in seconds."""

    path: str
    interval_s: float


@dataclass(slots=True)
class Health:
    """How an upstream is doing, in the eyes of this process.

    `credentials` are the cool-downs of its `api_keys`, by their place. `in_flight` counts the exchanges that it
    serves, `max_concurrency` is the most of them. `held_s` is how long it lately served one, on average. One that
    `is_failing` failed what it was asked last. A drained one gets no new exchange. One that `is_probed` is asked by
    probes whether it works again, and not by exchanges.
    """

    circuit: Circuit
    credentials: Credentials
    budget: RetryBudget
    max_concurrency: int | None = None
    in_flight: int = 0
    held_s: float = 0.0
    is_failing: bool = False
    is_drained: bool = False
    is_probed: bool = False

    @property
    def has_room(self) -> bool:
        """It may serve one more."""
        return self.max_concurrency is None or self.in_flight < self.max_concurrency

    def is_free(self, now_s: float) -> bool:
        """It has room, and admits an exchange."""
        if self.max_concurrency is not None and self.in_flight >= self.max_concurrency:
            return False
        return not (self.is_drained or self.circuit.is_open) or self.admits(now_s)

    def admits(self, now_s: float) -> bool:
        """It is not drained, and its circuit lets an exchange pass. `now_s` is monotonic."""
        if self.is_drained:
            return False
        return not self.circuit.is_open or (not self.is_probed and self.circuit.admits(now_s))

    def is_open(self, now_s: float) -> bool:
        """It is not drained, and its circuit is not open: half open is enough to be hopeful."""
        return not self.is_drained and self.circuit.state(now_s) is not State.OPEN


class Upstream:
    """Where a model server is, what a request to it looks like, and its connections.

    `auth` is one of bearer, api-key, none, passthrough. `secrets` are what of the configuration must not come back in
    an answer.
    """

    def __init__(
        self,
        name: str,
        *,
        pool: UpstreamPool,
        health: Health,
        host_header: bytes,
        base_path: str,
        auth: str,
        api_keys: Sequence[bytes],
        extra_headers: RawHeaders,
        query: Mapping[str, str],
        secrets: Sequence[bytes],
        timeouts: Timeouts,
        injects_usage: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.health = health
        self.base_path = base_path
        self.auth = auth
        self.api_keys = tuple(api_keys)
        self.query = dict(query)
        self.secrets = tuple(secrets)
        self.timeouts = timeouts
        self.probe = probe
        self._injects_usage = injects_usage
        self._refusing: set[str | None] = set()  # models for which it refuses `stream_options`
        self._host = (b"Host", host_header)
        self._extra = list(extra_headers)
        self._endpoints: dict[str, bytes] = {}  # their targets, by their names in the route table
        overridden = {name.lower() for name, _ in extra_headers}
        stop = Stop.REQUEST if auth == "passthrough" else Stop.REQUEST | Stop.CREDENTIAL
        self._crossing = Crossing(stop, overridden)
        self._crossing_but_context = Crossing(stop, {*overridden, *CONTEXT_HEADERS})
        self._overridden = overridden
        self._credentials = _credentials(auth, self.api_keys)
        self._ours: dict[tuple[bytes, int], RawHeaders] = {}  # by what Via says, which does not change, and the key

    def injects_usage(self, model: str | None) -> bool:
        """May Sluice ask for the usage of streams? `model` is the upstream's own name for it."""
        return self._injects_usage and model not in self._refusing

    def refused_usage(self, model: str | None) -> None:
        """Remember that a request without `stream_options` went well where one with them did not."""
        if len(self._refusing) >= _MOST_REFUSING:
            self._refusing.clear()
        self._refusing.add(model)

    def request_headers(
        self, received: RawHeaders, via: bytes, api_key: int, trace: RawHeaders | None = None
    ) -> RawHeaders:
        """What goes upstream: what crosses, then ours; configured headers replace any of the same name.

        `api_key` is the place of the key to use; it does not matter where the upstream wants none. `trace` goes in
        place of the client's trace context; None: that crosses.
        """
        ours = self._ours.get((via, api_key))
        if ours is None:
            ours = self._ours[via, api_key] = self._our_headers(via, api_key)
        if trace is None:
            return [self._host, *self._crossing.of(received), *ours]
        context = [pair for pair in trace if pair[0].lower() not in self._overridden]
        return [self._host, *self._crossing_but_context.of(received), *ours, *context]

    def _our_headers(self, via: bytes, api_key: int) -> RawHeaders:
        ours = [(b"Accept-Encoding", b"identity"), (b"Via", via)]
        if self._credentials:
            # one who waited while the upstream was reloaded may come with a place among more keys than these
            ours.append(self._credentials[api_key % len(self._credentials)])
        return [*(pair for pair in ours if pair[0].lower() not in self._overridden), *self._extra]

    def endpoint_target(self, name: str, query: str) -> bytes:
        """The request target of an endpoint in the route table, worked out once where the client sends no query."""
        if query:
            return self.target("/" + name, query)
        target = self._endpoints.get(name)
        if target is None:
            target = self._endpoints[name] = self.target("/" + name, query)
        return target

    def target(self, path: str, query: str) -> bytes:
        """The request target: the path under the base URL, with the configured query members taking precedence."""
        if self.query:
            kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in self.query]
            query = urlencode([*kept, *self.query.items()])
        target = self.base_path + path + ("?" + query if query else "")
        return quote(target, safe="%/:=&?~#+!$,;'@()*[]-._|").encode("ascii")


def _credentials(auth: str, api_keys: Sequence[bytes]) -> RawHeaders:
    """The header that goes with each API key."""
    if auth == "bearer":
        return [(b"Authorization", b"Bearer " + key) for key in api_keys]
    return [(b"api-key", key) for key in api_keys] if auth == "api-key" else []
