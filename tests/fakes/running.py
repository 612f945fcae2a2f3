"""A real proxy in the test's event loop: a `Worker` on free ports, its log lines and metrics within reach."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import CollectorRegistry

from proxy.config.settings import (
    BreakerConfig,
    Config,
    KeyConfig,
    LedgerConfig,
    LogConfig,
    ModelConfig,
    OpsConfig,
    PlanConfig,
    RetriesConfig,
    ServerConfig,
)
from proxy.config.upstreams import UpstreamConfig
from proxy.config.values import Secret, SecretUrl
from proxy.stores.database import migrate, open_database
from proxy.telemetry.log_writer import LogWriter
from proxy.telemetry.logs import configure
from proxy.telemetry.metrics import Metrics
from proxy.worker import Worker
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample

# where a commit costs no disk's time
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
KEY = "sk-test-key-0123456789"
UPSTREAM_KEY = "sk-upstream-9876543210"


class _Pipe:
    """A real pipe whose other end a thread reads: what a log writer writes to in production."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self._text = bytearray()
        self._lines: list[dict[str, Any]] = []
        self._decoded = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._writing

    def _read(self) -> None:
        while data := os.read(self._reading, 65536):
            self._text += data
        os.close(self._reading)

    def close(self) -> None:
        os.close(self._writing)
        self._thread.join()

    @property
    def text(self) -> str:
        return self._text.decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines that are whole; each is decoded once, since they are looked at again and again."""
        end = self._text.rfind(b"\n") + 1
        self._lines += map(json.loads, self._text[self._decoded : end].splitlines())
        self._decoded = end
        return list(self._lines)


@dataclass
class Running:
    """A proxy that runs. `lines` are its log lines so far, decoded."""

    worker: Worker
    metrics: Metrics
    pipe: _Pipe
    scheme: str
    _showing: dict[str, Collector] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return self.worker.port

    @property
    def ops_port(self) -> int:
        return self.worker.ops_port

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/v1"

    @property
    def log_text(self) -> str:
        return self.pipe.text

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.pipe.lines

    @property
    def exchanges(self) -> list[dict[str, Any]]:
        """The canonical lines so far."""
        return [line for line in self.lines if line["event"] == "exchange"]

    async def exchange(self, count: int = 1) -> dict[str, Any]:
        """Wait until `count` canonical lines are written; the last of them."""
        await until(lambda: len(self.exchanges) >= count, f"{count} canonical log lines")
        return self.exchanges[count - 1]

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 where it has none yet."""
        return sum(sample.value for sample in self.samples(name) if sample.labels == labels)

    def total(self, name: str) -> float:
        """The sum of a metric over all its label sets."""
        return sum(sample.value for sample in self.samples(name))

    def samples(self, name: str) -> list[Sample]:
        """A metric under each of its label sets. Who shows it is remembered: to ask all takes longer than a request."""
        known = self._showing.get(name)
        for collector in self.metrics._registry._collector_to_names.copy() if known is None else (known,):
            samples = (sample for family in collector.collect() for sample in family.samples)
            if found := [sample for sample in samples if sample.name == name]:
                self._showing[name] = collector
                return found
        return []


# what most tests show is what becomes of one attempt at an upstream
ONCE = RetriesConfig(attempts=1)
NEVER_OPEN = BreakerConfig(failures=1_000_000, least_results=1_000_000)


def upstream_config(url: str, **settings: Any) -> UpstreamConfig:
    """An upstream with a key of its own unless `auth` says otherwise."""
    if settings.get("auth", "bearer") in ("bearer", "api-key"):
        settings.setdefault("api_keys", (Secret(UPSTREAM_KEY),))
    return UpstreamConfig(base_url=url, **settings)


@functools.cache
def _fresh_ledger() -> bytes:
    """An SQLite ledger without rows, to be copied: making one takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        engine = open_database(f"sqlite:///{file}")
        migrate(engine)
        engine.dispose()
        return file.read_bytes()


@contextlib.contextmanager
def fresh_ledger() -> Iterator[str]:
    """The URL of a ledger in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-", dir=MEMORY))
    try:
        (folder / "ledger.db").write_bytes(_fresh_ledger())
        yield f"sqlite:///{folder}/ledger.db"
    finally:
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def running(
    upstream: str | Mapping[str, UpstreamConfig],
    *,
    server: Mapping[str, Any] | None = None,
    models: Mapping[str, ModelConfig] | None = None,
    plans: Mapping[str, PlanConfig] | None = None,
    keys: tuple[KeyConfig, ...] | None = None,
    log_level: str = "info",
    settings: Mapping[str, Any] | None = None,
    ledger: str | None = None,
    admin_token: str = "",
) -> AsyncIterator[Running]:
    """Run a proxy before `upstream`: one base URL, or named upstreams. `KEY` is accepted unless `keys` says otherwise.

    Its ledger is at the URL `ledger`, else a fresh one. At the end it is stopped without a drain, and must have nothing
    left.
    """
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(_fresh_ledger)
        url = ledger or stack.enter_context(fresh_ledger())
        config = Config(
            server=ServerConfig(port=0, **(server or {})),
            ops=OpsConfig(port=0, admin_token=Secret(admin_token)),
            upstreams={"up": upstream_config(upstream)} if isinstance(upstream, str) else dict(upstream),
            models=dict(models or {}),
            plans=dict(plans or {}),
            keys=(KeyConfig(id="team-a", secret=Secret(KEY)),) if keys is None else keys,
            ledger=LedgerConfig(url=SecretUrl(url)),
            log=msgspec.convert({"level": log_level}, LogConfig),
            **{"retries": ONCE, "breaker": NEVER_OPEN, **(settings or {})},
        )
        pipe = _Pipe()
        writer = LogWriter(pipe)
        metrics = Metrics(CollectorRegistry())
        metrics.watch_log(writer)
        worker = Worker(config, metrics, configure(config.log.level, config.log.format, writer))
        try:
            await worker.start()
        except BaseException:
            await worker.stop(0.0)
            writer.close()
            pipe.close()
            raise
        scheme = "https" if config.server.tls.certificate is not None else "http"
        try:
            yield Running(worker, metrics, pipe, scheme)
        finally:
            await worker.stop(0.0)
            writer.close()
            pipe.close()
