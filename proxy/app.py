"""The composition root: from a configuration to a running proxy. This module alone names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from proxy.building import (
    balancer_of,
    encodings_of,
    keyring_of,
    prices_of,
    retry_policy_of,
    router_of,
    throttle_of,
    upstream_of,
)
from proxy.config.values import is_in_memory
from proxy.core.addresses import TrustedProxies
from proxy.phases.account import Accounting
from proxy.phases.attempts import Attempts
from proxy.phases.authenticate import Authenticator
from proxy.phases.hedging import Hedge
from proxy.phases.models import Catalogue
from proxy.phases.observe import Counting
from proxy.phases.pipeline import Limits, Pipeline
from proxy.phases.probing import Prober
from proxy.phases.quotas import Quotas
from proxy.phases.refresh_keys import KeyRefresher
from proxy.server.cors import Cors
from proxy.server.openai_api import OpenAIApi
from proxy.server.ops import OpsApi
from proxy.stores.base import LedgerProblem
from proxy.stores.database import migrate, open_database, reason_of
from proxy.stores.keys import KeyStore
from proxy.stores.ledger import DatabaseLedger
from proxy.stores.memory import MemoryQuotaStore
from proxy.stores.recall import recall
from proxy.stores.transient import transient_ledger
from proxy.tasks import BackgroundTasks
from proxy.tokenizers import BackgroundCounter, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import structlog
    from sqlalchemy import Engine

    from proxy.config.settings import Config
    from proxy.core.quota import Demand, Limit, Reservation
    from proxy.core.tokens import TokenCounter
    from proxy.stores.base import QuotaStore, Recall
    from proxy.stores.redis import RedisQuotaStore
    from proxy.telemetry.metrics import Metrics

# at a stop: for the usage of streams whose client has just left, then for the rows that wait
_SETTLING_S: Final = 3.0
_IN_MEMORY: Final = "memory://"
_WRITING_S: Final = 5.0
# the first request of a key waits so long for what the key used before
_RECALL_S: Final = 2.0


class App:
    """A proxy put together from `config`, ready to be given listeners; knows when it is ready and when it drains."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        prepared: _Prepared,
    ) -> None:
        engine, counter, from_ledger, self._shared = prepared
        self.config = config
        self.log = log
        self.is_draining = False
        self.tasks = BackgroundTasks()  # of exchanges
        self._chores = BackgroundTasks()
        self.upstreams = {name: upstream_of(name, settings, config) for name, settings in config.upstreams.items()}
        via_name = b"sluice-" + secrets.token_hex(4).encode()
        router = router_of(config, self.upstreams)
        self.balancer = balancer_of(config, metrics.routing)
        self._prober = Prober(self.balancer, b"1.1 " + via_name, self.tasks, time.monotonic)
        keyring = keyring_of(config)
        self._engine = engine
        self.ledger = _ledger(config, engine, metrics)
        self._keys = KeyRefresher(KeyStore(engine), keyring, log)
        self._beside = BackgroundCounter(counter)
        self._quotas = Quotas(*self._store(self._shared, from_ledger), metrics)
        self._accounting = Accounting(
            quotas=self._quotas,
            ledger=self.ledger,
            prices=prices_of(config),
            counting=Counting(counter, self._beside),
            clock=time.time,  # noqa: TID251 - the clock that is passed in
        )
        self.pipeline = Pipeline(
            authenticator=Authenticator(keyring, throttle_of(config), metrics),
            router=router,
            catalogue=Catalogue(router, self.tasks),
            accounting=self._accounting,
            limits=Limits(
                max_request_bytes=config.server.max_request_bytes,
                write_stall_s=config.server.write_stall,
                keepalive_s=config.server.keepalive_comment,
            ),
            attempts=Attempts(
                self.balancer,
                retry_policy_of(config),
                via=b"1.1 " + via_name,
                tasks=self.tasks,
                metrics=metrics.routing,
                write_stall_s=config.server.write_stall,
                hedge=None if config.retries.hedge_after is None else Hedge(config.retries.hedge_after, self.tasks),
                clock=time.monotonic,
                unix_clock=time.time,  # noqa: TID251 - the clock that is passed in
                draw=random.random,
            ),
            tasks=self.tasks,
            metrics=metrics,
            log=log,
        )
        self.api = OpenAIApi(
            self.pipeline,
            Cors(config.server.cors_origins),
            request_read_timeout_s=config.server.request_read_timeout,
            write_stall_s=config.server.write_stall,
            via_name=via_name,
            trusted_proxies=TrustedProxies(config.server.trusted_proxies),
        )
        self.ops = OpsApi(metrics, self.problems)

    async def start(self) -> None:
        """Begin to write the ledger, and read the keys in it. Raises SQLAlchemy's errors."""
        self.ledger.start()
        await self._keys.load()
        self._chores.keep(self._keys.run(), "keys")
        self._chores.keep(self._quotas.keep(), "leases")
        for upstream in self.upstreams.values():
            if upstream.probe is not None:
                self._chores.keep(self._prober.keep_probing(upstream, upstream.probe), "probes")

    def problems(self) -> list[str]:
        """What keeps this process from being ready."""
        found = ["draining"] if self.is_draining else []
        if self.ledger.problem is not None:
            found.append(f"ledger: {self.ledger.problem}")
        if self._shared is not None and self._shared.is_away:
            found.append("store: it does not answer")
        return found

    def drain(self) -> None:
        """No new work is wanted: `/readyz` says so, and answers close their connections."""
        self.is_draining = True
        self.api.is_draining = True

    async def close(self) -> None:
        """Let go of what outlives exchanges; what they used is written first."""
        await self._chores.close(0.0)
        await self.tasks.close(_SETTLING_S)
        for upstream in self.upstreams.values():
            upstream.pool.close()
        with contextlib.suppress(SQLAlchemyError):  # when keys were last used is no reason to hold up a stop
            await self._keys.note_used()
        if self._shared is not None:
            await self._shared.close()
        unwritten = await self.ledger.close(_WRITING_S)
        if unwritten:
            self.log.error("rows of the ledger are lost", count=unwritten)
        self._accounting.stop()
        self._beside.close()
        await asyncio.to_thread(self._engine.dispose)

    def _store(
        self, shared: RedisQuotaStore | None, from_ledger: Recall
    ) -> tuple[QuotaStore, Callable[[Reservation, Demand, Callable[[], None]], None]]:
        """Where quotas are counted, and how an exchange's end is told there."""
        if shared is None:
            memory = MemoryQuotaStore(_steady_clock_ms(), from_ledger)

            def settle_here(reservation: Reservation, used: Demand, done: Callable[[], None]) -> None:
                memory.settle_now(reservation, used)
                done()

            return memory, settle_here

        def settle(reservation: Reservation, used: Demand, done: Callable[[], None]) -> None:
            self.tasks.start(shared.settle(reservation, used), "quota").add_done_callback(lambda _: done())

        return shared, settle


class _Prepared(NamedTuple):
    """What takes its time to make, and files; made in a thread."""

    engine: Engine
    counter: TokenCounter
    recall: Recall
    shared: RedisQuotaStore | None


async def open_app(config: Config, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> App:
    """A started App. Raises `LedgerProblem` when the ledger cannot be opened, naming why."""
    app = App(config, metrics, log, await asyncio.to_thread(_prepare, config, metrics))
    try:
        await app.start()
    except SQLAlchemyError as error:
        await app.close()
        raise LedgerProblem(f"the ledger cannot be read: {reason_of(error)}") from error
    return app


def _prepare(config: Config, metrics: Metrics) -> _Prepared:
    engine = open_database(transient_ledger() if is_in_memory(config.ledger.url) else config.ledger.url.reveal())
    try:
        migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        reason = reason_of(error) if isinstance(error, SQLAlchemyError) else error.strerror
        raise LedgerProblem(f"the ledger {config.ledger.url} cannot be opened: {reason}") from error

    async def from_ledger(key_id: str, starts_s: Mapping[Limit, int]) -> Mapping[Limit, Demand]:
        return await asyncio.wait_for(asyncio.to_thread(recall, engine, key_id, starts_s), _RECALL_S)

    shared = None if config.store.url.reveal() == _IN_MEMORY else _redis(config, metrics, from_ledger)
    return _Prepared(engine, load(encodings_of(config)), from_ledger, shared)


def _redis(config: Config, metrics: Metrics, from_ledger: Recall) -> RedisQuotaStore:
    from proxy.stores.redis import RedisQuotaStore  # noqa: PLC0415 - its library takes 0.3 s, and few need it

    return RedisQuotaStore(
        config.store.url.reveal(),
        allow=config.store.on_failure == "allow",
        clock=time.monotonic,
        seen=metrics.store_asked,
        recall=from_ledger,
        timeout_s=config.store.timeout,
    )


def _ledger(config: Config, engine: Engine, metrics: Metrics) -> DatabaseLedger:
    ledger = DatabaseLedger(
        engine,
        f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
        clock_ms=lambda: int(time.time() * 1000),  # noqa: TID251 - the clock that is passed in
        on_commit=metrics.committed,
        keep_ms=None if config.ledger.keep is None else int(config.ledger.keep * 1000),
    )
    metrics.watch_ledger(lambda: ledger.waiting)
    return ledger


def _steady_clock_ms() -> Callable[[], int]:
    """UNIX time in milliseconds that does not jump: the wall clock now, and the monotonic one from then on."""
    ahead_ms = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000
    return lambda: ahead_ms + time.monotonic_ns() // 1_000_000
