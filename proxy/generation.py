"""What one configuration makes of the proxy. A reload makes another; exchanges end with the one they began with."""

from __future__ import annotations

import functools
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.building import (
    health_of,
    keyring_of,
    queue_limits_of,
    retry_policy_of,
    router_of,
    throttle_of,
    upstream_of,
    upstream_tls,
)
from proxy.config.prices import prices_of
from proxy.core.addresses import TrustedProxies
from proxy.phases.account import Accounting
from proxy.phases.attempts import Attempts
from proxy.phases.authenticate import Authenticator
from proxy.phases.hedging import Hedge
from proxy.phases.live import LiveExchanges
from proxy.phases.models import Catalogue
from proxy.phases.pipeline import Limits, Pipeline
from proxy.phases.probing import Prober
from proxy.phases.refresh_keys import KeyRefresher
from proxy.server.cors import Cors
from proxy.server.openai_api import Serving
from proxy.tasks import BackgroundTasks

if TYPE_CHECKING:
    import ssl

    import structlog

    from proxy.config.settings import Config
    from proxy.core.throttle import Throttle
    from proxy.phases.balancer import Balancer
    from proxy.phases.observe import Counting
    from proxy.phases.quotas import Quotas
    from proxy.phases.upstreams import Health, Upstream
    from proxy.stores.keys import KeyStore
    from proxy.stores.ledger import DatabaseLedger
    from proxy.telemetry.metrics import Metrics

_ESTIMATING_THREADS: Final = 2
_WALL_CLOCK = time.time  # noqa: TID251 - the clock that is passed in


@dataclass
class Standing:
    """What outlives every configuration. `drained` names upstreams that get no new exchange until they are let back."""

    metrics: Metrics
    log: structlog.typing.FilteringBoundLogger
    ledger: DatabaseLedger
    keys: KeyStore
    quotas: Quotas
    counting: Counting
    balancer: Balancer
    drained: set[str] = field(default_factory=set)
    tasks: BackgroundTasks = field(default_factory=BackgroundTasks)  # of exchanges
    live: LiveExchanges = field(default_factory=LiveExchanges)
    via_name: bytes = field(default_factory=lambda: b"sluice-" + secrets.token_hex(4).encode())
    # of its own: names are resolved and files are read in the event loop's threads, and must not wait behind these
    estimating: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_ESTIMATING_THREADS, thread_name_prefix="estimates")
    )


class Generation:
    """All that `config` decides. Of the one `before`, upstreams and counts of failures go on where they are the same.

    Making one opens no connection and changes nothing of the other. Raises `OSError` for a certificate or a key that
    cannot be used.
    """

    def __init__(self, config: Config, standing: Standing, before: Generation | None) -> None:
        self.config = config
        self._standing = standing
        self._chores = BackgroundTasks()
        self.tls: ssl.SSLContext | None = None  # of the API's listener, where it has a certificate
        self.upstreams = _upstreams(config, before)
        known = {} if before is None else before.upstreams
        self._renewed = {one for name, one in self.upstreams.items() if name in known and known[name] is not one}
        self._keyring = keyring_of(config)
        self.keys = KeyRefresher(standing.keys, self._keyring, standing.log)
        is_same = before is not None and before.config.server.auth_failures == config.server.auth_failures
        self.throttle: Throttle | None = before.throttle if before is not None and is_same else throttle_of(config)
        self.pipeline = self._pipeline()
        server = config.server
        self.serving = Serving(
            self.pipeline,
            Cors(server.cors_origins),
            request_read_timeout_s=server.request_read_timeout,
            write_stall_s=server.write_stall,
            trusted_proxies=TrustedProxies(server.trusted_proxies),
        )

    def _pipeline(self) -> Pipeline:
        config, standing = self.config, self._standing
        router = router_of(config, self.upstreams)
        return Pipeline(
            authenticator=Authenticator(self._keyring, self.throttle, standing.metrics),
            router=router,
            catalogue=Catalogue(router, standing.tasks),
            accounting=Accounting(
                quotas=standing.quotas,
                ledger=standing.ledger,
                prices=prices_of(config),
                counting=standing.counting,
                estimating=standing.estimating,
                clock=_WALL_CLOCK,
            ),
            attempts=self._attempts(),
            limits=Limits(
                max_request_bytes=config.server.max_request_bytes,
                write_stall_s=config.server.write_stall,
                keepalive_s=config.server.keepalive_comment,
            ),
            live=standing.live,
            tasks=standing.tasks,
            metrics=standing.metrics,
            log=standing.log,
        )

    def _attempts(self) -> Attempts:
        standing, hedge_after_s = self._standing, self.config.retries.hedge_after
        return Attempts(
            standing.balancer,
            retry_policy_of(self.config),
            via=b"1.1 " + standing.via_name,
            tasks=standing.tasks,
            metrics=standing.metrics.routing,
            write_stall_s=self.config.server.write_stall,
            hedge=None if hedge_after_s is None else Hedge(hedge_after_s, standing.tasks),
            clock=time.monotonic,
            unix_clock=_WALL_CLOCK,
            draw=random.random,
        )

    def begin(self) -> None:
        """Do the chores of a generation that serves."""
        standing = self._standing
        standing.balancer.limit(queue_limits_of(self.config))
        self._chores.keep(self.keys.run(), "keys")
        prober = Prober(standing.balancer, b"1.1 " + standing.via_name, standing.tasks, time.monotonic)
        for upstream in self.upstreams.values():
            settings = self.config.upstreams[upstream.name]
            if upstream in self._renewed:
                _renew(upstream.health, health_of(settings, self.config))
            upstream.health.max_concurrency = settings.max_concurrency
            upstream.health.is_drained = upstream.name in standing.drained
            standing.balancer.changed(upstream)
            if upstream.probe is not None:
                self._chores.keep(prober.keep_probing(upstream, upstream.probe), "probes")

    async def end(self, after: Generation | None) -> None:
        """Another serves from now on, or none. Exchanges in flight end as they began."""
        await self._chores.close(0.0)
        kept = set() if after is None else set(after.upstreams.values())
        for upstream in self.upstreams.values():
            if upstream not in kept:
                upstream.pool.close()
        if after is not None:
            self._standing.metrics.routing.forget(self.upstreams.keys() - after.upstreams.keys())


def _upstreams(config: Config, before: Generation | None) -> dict[str, Upstream]:
    """The upstreams; one whose settings are the same goes on as it is, connections included.

    Another of the same name shares what is counted of it: who waits or is served there waits for both.
    """
    found = {}
    tls_of = functools.cache(upstream_tls)  # no longer than this: a file that was renewed is read by a reload
    for name, settings in config.upstreams.items():
        old = before.upstreams.get(name) if before is not None else None
        if before is not None and old is not None and _is_same_upstream(name, config, before.config):
            found[name] = old
        else:
            health = health_of(settings, config) if old is None else old.health
            found[name] = upstream_of(name, settings, health, tls_of)
    return found


def _renew(health: Health, now: Health) -> None:
    """Go on with what the settings of `now` say; how many are served there stays true."""
    health.circuit, health.credentials, health.budget = now.circuit, now.credentials, now.budget
    health.is_failing = False
    health.is_probed = now.is_probed


def _is_same_upstream(name: str, config: Config, before: Config) -> bool:
    """Whether nothing differs that an upstream is made of; its limit can change while it runs."""
    now, then = config.upstreams[name], before.upstreams[name]
    then = msgspec.structs.replace(then, max_concurrency=now.max_concurrency)
    return (now, config.breaker, config.retries.budget) == (then, before.breaker, before.retries.budget)
