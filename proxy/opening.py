"""Open what an App stands on: the ledger, the quota store, the collector of traces. Takes its time, and files."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from proxy import __version__
from proxy.config.values import is_in_memory
from proxy.phases.tracing import Tracing
from proxy.stores.base import LedgerProblem
from proxy.stores.database import migrate, open_database, reason_of
from proxy.stores.ledger import DatabaseLedger
from proxy.stores.memory import MemoryQuotaStore
from proxy.stores.recall import recall
from proxy.stores.recovery import boot_time_ms
from proxy.stores.transient import transient_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import structlog
    from sqlalchemy import Engine

    from proxy.config.settings import Config
    from proxy.core.quota import Demand, Limit
    from proxy.stores.base import Recall
    from proxy.stores.redis import RedisQuotaStore
    from proxy.telemetry.metrics import Metrics

_IN_MEMORY: Final = "memory://"
_PSYCOPG: Final = "sqlalchemy.dialects.postgresql.psycopg"
# the first request of a key waits so long for what the key used before
_RECALL_S: Final = 2.0
_RECALLING_THREADS: Final = 2


class Opened(NamedTuple):
    """What is open. `store` counts quotas; `shared` is the same if several processes share it."""

    engine: Engine
    recalls: Recalls
    store: MemoryQuotaStore | RedisQuotaStore
    shared: RedisQuotaStore | None
    tracing: Tracing | None


class Recalls:
    """Asks the ledger what keys used before, in threads of its own: files and names are looked up in the loop's.

    A question that takes too long goes on, and who asks the same meanwhile waits for its answer: a slow ledger is not
    asked ever more often.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(_RECALLING_THREADS, thread_name_prefix="recalls")
        self._asking: dict[tuple[str, frozenset[tuple[Limit, int]]], asyncio.Future[Mapping[Limit, Demand]]] = {}

    async def __call__(self, key_id: str, starts_s: Mapping[Limit, int], /) -> Mapping[Limit, Demand]:
        """As `Recall` says. Raises `TimeoutError` after two seconds."""
        asked = key_id, frozenset(starts_s.items())
        answer = self._asking.get(asked)
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = loop.run_in_executor(self._executor, recall, self._engine, key_id, dict(starts_s))
            self._asking[asked] = answer
            answer.add_done_callback(lambda _: self._asking.pop(asked))
        return await asyncio.wait_for(asyncio.shield(answer), _RECALL_S)

    def stop(self) -> None:
        """End the threads; nobody asks any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def open_all(config: Config, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> Opened:
    """Open everything. Blocks. Raises `LedgerProblem` when the ledger cannot be opened, naming why."""
    engine = open_database(transient_ledger() if is_in_memory(config.ledger.url) else config.ledger.url.reveal())
    try:
        migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        reason = reason_of(error) if isinstance(error, SQLAlchemyError) else error.strerror
        raise LedgerProblem(f"the ledger {config.ledger.url} cannot be opened: {reason}") from error
    recalls = Recalls(engine)
    tracing = _tracing(config, metrics, log)
    if config.store.url.reveal() == _IN_MEMORY:
        return Opened(engine, recalls, MemoryQuotaStore(_steady_clock_ms(), recalls), None, tracing)
    shared = _redis(config, metrics, recalls)
    return Opened(engine, recalls, shared, shared, tracing)


def modules_of(config: Config) -> frozenset[str]:
    """What opening and using it all imports only where the configuration asks for it."""
    is_sqlite = config.ledger.url.reveal().startswith("sqlite")
    found = {"sqlalchemy.dialects.sqlite.pysqlite"} if is_sqlite else {"proxy.stores.postgres", _PSYCOPG}
    if config.store.url.reveal() != _IN_MEMORY:
        found.add("proxy.stores.redis")
    if config.tracing.endpoint is not None:
        found |= {"proxy.telemetry.tracing", "requests"}  # by which its exporter sends: imported when one is made
    return frozenset(found)


def _tracing(config: Config, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> Tracing | None:
    """What makes traces, if there is a collector. Starts a thread."""
    settings = config.tracing
    if settings.endpoint is None:
        return None
    from proxy.telemetry.tracing import OtlpSender  # noqa: PLC0415 - an extra

    sender = OtlpSender(
        settings.endpoint,
        {name: value.reveal() for name, value in settings.headers.items()},
        {
            "service.name": settings.service_name,
            "service.version": __version__,
            "service.instance.id": _process_name(),
        },
        log=log,
        lost=metrics.spans_lost,
    )
    return Tracing(
        sender,
        sample=settings.sample,
        scheme="http" if config.server.tls.certificate is None else "https",
        draw_bits=random.getrandbits,
        unix_ns=time.time_ns,
    )


def _redis(config: Config, metrics: Metrics, recalls: Recall) -> RedisQuotaStore:
    from proxy.stores.redis import RedisQuotaStore  # noqa: PLC0415 - its library takes 0.3 s, and few need it

    return RedisQuotaStore(
        config.store.url.reveal(),
        allow=config.store.on_failure == "allow",
        clock=time.monotonic,
        seen=metrics.quotas.store_asked,
        recall=recalls,
        timeout_s=config.store.timeout,
    )


def ledger_of(config: Config, engine: Engine, metrics: Metrics) -> DatabaseLedger:
    """The record of exchanges in the database, under a name that no other process has."""
    ledger = DatabaseLedger(
        engine,
        _process_name(),
        clock_ms=lambda: int(time.time() * 1000),  # noqa: TID251 - the clock that is passed in
        on_commit=metrics.committed,
        keep_ms=None if config.ledger.keep is None else int(config.ledger.keep * 1000),
    )
    metrics.watch_ledger(lambda: ledger.waiting)
    return ledger


def _process_name() -> str:
    """A name that no other process has, nor a later one of the same number."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _steady_clock_ms() -> Callable[[], int]:
    """UNIX time in milliseconds that does not jump: the wall clock now, and the time since boot from then on."""
    ahead_ms = time.time_ns() // 1_000_000 - boot_time_ms()
    return lambda: ahead_ms + boot_time_ms()
