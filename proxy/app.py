"""The composition root: from a configuration to a running proxy, and from there to the next configuration."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError

from proxy.admin.inside import Inside
from proxy.building import encodings_of, queue_limits_of
from proxy.generation import Generation, Standing
from proxy.opening import ledger_of, open_all
from proxy.phases.balancer import Balancer
from proxy.phases.observe import Counting
from proxy.phases.quotas import Quotas
from proxy.server.openai_api import OpenAIApi
from proxy.server.ops import OpsApi
from proxy.stores.base import LedgerProblem
from proxy.stores.database import reason_of
from proxy.stores.keys import KeyStore
from proxy.tasks import BackgroundTasks
from proxy.tokenizers import BackgroundCounter, load, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    import structlog
    from sqlalchemy import Engine

    from proxy.config.settings import Config
    from proxy.core.tokens import TokenCounter
    from proxy.opening import Opened
    from proxy.phases.live import LiveExchanges
    from proxy.phases.pipeline import Pipeline
    from proxy.phases.upstreams import Upstream
    from proxy.telemetry.metrics import Metrics

# at a stop: for the usage of streams whose client has just left, then for the rows that wait
_SETTLING_S: Final = 3.0
_WRITING_S: Final = 5.0
_TRACING_S: Final = 2.0


class App:
    """A proxy put together from `config`, ready to be given listeners; knows when it is ready and when it drains.

    The upstreams that are `drained` get no exchange.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        opened: Opened,
        counter: TokenCounter,
        *,
        drained: Iterable[str] = (),
    ) -> None:
        self.log = log
        self.is_draining = False
        self._opened = opened
        self._chores = BackgroundTasks()
        self._counter = counter
        self._beside = BackgroundCounter(counter)
        self.ledger = ledger_of(config, opened.engine, metrics)
        self._quotas = Quotas(opened.store, self._later, metrics.quotas)
        self._standing = Standing(
            metrics,
            log,
            self.ledger,
            KeyStore(opened.engine),
            self._quotas,
            Counting(counter, self._beside),
            Balancer(queue_limits_of(config), metrics.routing, time.monotonic, random.random),
            set(drained),
        )
        self.tasks = self._standing.tasks
        self._generation = Generation(config, self._standing, None)
        self.api = OpenAIApi(self._generation.serving, self._standing.via_name, opened.tracing)
        self.ops = OpsApi(metrics, self.problems)
        standing = self._standing
        metrics.watch_exchanges(standing.live.by_phase)
        self.inside = Inside(standing.live, standing.balancer, lambda: self.upstreams, standing.drained)

    @property
    def config(self) -> Config:
        """What it serves by now."""
        return self._generation.config

    @property
    def engine(self) -> Engine:
        """The ledger's database."""
        return self._opened.engine

    @property
    def live(self) -> LiveExchanges:
        """The exchanges under way."""
        return self._standing.live

    @property
    def pipeline(self) -> Pipeline:
        """What exchanges go through that begin now."""
        return self._generation.pipeline

    @property
    def upstreams(self) -> dict[str, Upstream]:
        """By name, those that may be asked now."""
        return self._generation.upstreams

    async def start(self) -> None:
        """Begin to write the ledger, and read the keys in it. Raises SQLAlchemy's errors."""
        self.ledger.start()
        await self._generation.keys.load()
        if self._opened.shared is not None:
            await self._opened.shared.probe()  # one that is away shows in `/readyz` before a request finds out
        self._generation.begin()
        self._chores.keep(self._quotas.keep(), "leases")

    async def prepare(self, config: Config) -> Generation:
        """What `config` would make of the proxy; nothing has changed yet.

        Raises `OSError` for a file that cannot be used, SQLAlchemy's errors where the stored keys cannot be read.
        """
        prepare(self._counter, encodings_of(config))
        made = Generation(config, self._standing, self._generation)
        await made.keys.load()
        return made

    async def change_to(self, made: Generation) -> None:
        """Serve as `made` from now on. Exchanges in flight end as they began."""
        before, self._generation = self._generation, made
        self.api.serving = made.serving
        try:
            made.begin()
        finally:
            await before.end(made)
        with contextlib.suppress(SQLAlchemyError):  # when keys were last used is no reason to fail
            await before.keys.note_used()

    def problems(self) -> list[str]:
        """What keeps this process from being ready."""
        found = ["draining"] if self.is_draining else []
        if self.ledger.problem is not None:
            found.append(f"ledger: {self.ledger.problem}")
        if self._opened.shared is not None and self._opened.shared.is_away:
            found.append("store: it does not answer")
        if not self._standing.balancer.any_open(self.upstreams.values()):
            found.append("upstreams: none may be asked at the moment")
        return found

    def drain(self) -> None:
        """No new work is wanted: `/readyz` says so, and answers close their connections."""
        self.is_draining = True
        self.api.is_draining = True

    async def close(self) -> None:
        """Let go of what outlives exchanges; what they used is written first."""
        await self._chores.close(0.0)
        await self.tasks.close(_SETTLING_S)
        await self._generation.end(None)
        with contextlib.suppress(SQLAlchemyError):  # when keys were last used is no reason to hold up a stop
            await self._generation.keys.note_used()
        if self._opened.shared is not None:
            await self._opened.shared.close()
        unwritten = await self.ledger.close(_WRITING_S)
        if unwritten:
            self.log.error("rows of the ledger are lost", count=unwritten)
        tracing = self._opened.tracing
        if tracing is not None and (left := await asyncio.to_thread(tracing.close, _TRACING_S)):
            self.log.warning("spans are lost", count=left)
        self._standing.estimating.shutdown(wait=False, cancel_futures=True)
        self._opened.recalls.stop()
        self._beside.close()
        await asyncio.to_thread(self._opened.engine.dispose)

    def _later(self, asking: Coroutine[object, None, None], done: Callable[[], None]) -> None:
        """Ask the quota store in the background."""
        self.tasks.start(asking, "quota").add_done_callback(lambda _: done())


async def open_app(
    config: Config,
    metrics: Metrics,
    log: structlog.typing.FilteringBoundLogger,
    drained: Iterable[str] = (),
) -> App:
    """A started App. Raises `LedgerProblem` when the ledger cannot be opened, naming why."""
    opened = await asyncio.to_thread(open_all, config, metrics, log)
    app = App(config, metrics, log, opened, load(encodings_of(config)), drained=drained)
    try:
        await app.start()
    except SQLAlchemyError as error:
        await app.close()
        raise LedgerProblem(f"the ledger cannot be read: {reason_of(error)}") from error
    return app
