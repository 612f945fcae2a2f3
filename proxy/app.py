"""The composition root: from a configuration to a running proxy. This module alone names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from proxy.config.settings import RouteConfig
from proxy.config.values import is_credential_name
from proxy.core.patterns import PatternTable
from proxy.core.pricing import Price, PriceList
from proxy.core.tokens import CL100K, O200K, encoding_of
from proxy.phases.account import Accounting
from proxy.phases.authenticate import Keyring, Plan, Principal, digest_of
from proxy.phases.models import Catalogue
from proxy.phases.observe import Counting
from proxy.phases.pipeline import Limits, Pipeline
from proxy.phases.refresh_keys import KeyRefresher
from proxy.phases.route import ModelRoute, Router, Timeouts, Upstream
from proxy.server.cors import Cors
from proxy.server.openai_api import OpenAIApi
from proxy.server.ops import OpsApi
from proxy.stores.base import LedgerProblem
from proxy.stores.database import migrate, open_database, reason_of
from proxy.stores.keys import KeyStore
from proxy.stores.ledger import DatabaseLedger
from proxy.tasks import BackgroundTasks
from proxy.tokenizers import BackgroundCounter, load
from proxy.upstream.connect import Origin, ProxyAddress, tls_context
from proxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    import structlog
    from sqlalchemy import Engine

    from proxy.config.settings import Config, KeyConfig, UpstreamConfig
    from proxy.core.tokens import TokenCounter
    from proxy.telemetry.metrics import Metrics

# local servers are given placeholders such as "x" or "EMPTY": masking those would tear words of error messages apart
_SHORTEST_MASKED = 8
_DEFAULT_PORTS = {"http": 80, "https": 443}
# at a stop: for the usage of streams whose client has just left, then for the rows that wait
_SETTLING_S: Final = 3.0
_WRITING_S: Final = 5.0


class App:
    """A proxy put together from `config`, ready to be given listeners; knows when it is ready and when it drains."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        *,
        engine: Engine,
        counter: TokenCounter,
    ) -> None:
        self.config = config
        self.log = log
        self.is_draining = False
        self.tasks = BackgroundTasks()  # of exchanges
        self._chores = BackgroundTasks()
        self.upstreams = {name: _upstream(name, settings) for name, settings in config.upstreams.items()}
        via_name = b"sluice-" + secrets.token_hex(4).encode()
        router = _router(config, self.upstreams)
        keyring = _keyring(config)
        self._engine = engine
        self.ledger = _ledger(config, engine, metrics)
        self._keys = KeyRefresher(KeyStore(engine), keyring, log)
        self._beside = BackgroundCounter(counter)
        self.pipeline = Pipeline(
            keyring=keyring,
            router=router,
            catalogue=Catalogue(router, self.tasks),
            accounting=Accounting(
                ledger=self.ledger,
                prices=_prices(config),
                counting=Counting(counter, self._beside),
                clock=time.time,  # noqa: TID251 - the clock that is passed in
            ),
            limits=Limits(
                max_request_bytes=config.server.max_request_bytes,
                write_stall_s=config.server.write_stall,
                keepalive_s=config.server.keepalive_comment,
            ),
            via=b"1.1 " + via_name,
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
        )
        self.ops = OpsApi(metrics, self.problems)

    async def start(self) -> None:
        """Begin to write the ledger, and read the keys in it. Raises SQLAlchemy's errors."""
        self.ledger.start()
        await self._keys.load()
        self._polling = self._chores.start(self._keys.run(), "keys")

    def problems(self) -> list[str]:
        """What keeps this process from being ready."""
        found = ["draining"] if self.is_draining else []
        if self.ledger.problem is not None:
            found.append(f"ledger: {self.ledger.problem}")
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
        unwritten = await self.ledger.close(_WRITING_S)
        if unwritten:
            self.log.error("rows of the ledger are lost", count=unwritten)
        self._beside.close()
        await asyncio.to_thread(self._engine.dispose)


async def open_app(config: Config, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> App:
    """A started App. Raises `LedgerProblem` when the ledger cannot be opened, naming why."""
    engine, counter = await asyncio.to_thread(_prepare, config)
    app = App(config, metrics, log, engine=engine, counter=counter)
    try:
        await app.start()
    except SQLAlchemyError as error:
        await app.close()
        raise LedgerProblem(f"the ledger cannot be read: {reason_of(error)}") from error
    return app


def _prepare(config: Config) -> tuple[Engine, TokenCounter]:
    """What takes its time, and files."""
    engine = open_database(config.ledger.url.reveal())
    try:
        migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        reason = reason_of(error) if isinstance(error, SQLAlchemyError) else error.strerror
        raise LedgerProblem(f"the ledger {config.ledger.url} cannot be opened: {reason}") from error
    return engine, load(_encodings(config))


def server_tls(config: Config) -> ssl.SSLContext | None:
    """The TLS context of the API's listener, if it has a certificate."""
    settings = config.server.tls
    if settings.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with _naming("server.tls"):
        context.load_cert_chain(settings.certificate, settings.private_key)
    return context


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """The error of a file that cannot be used as a certificate or a key does not say which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{setting}: {error.strerror or error}") from error


def _upstream(name: str, settings: UpstreamConfig) -> Upstream:
    url = urlsplit(settings.base_url)
    host = url.hostname or ""
    port = url.port or _DEFAULT_PORTS[url.scheme]
    tls = None
    if url.scheme == "https":
        with _naming(f"upstreams.{name}.tls"):
            tls = tls_context(
                verify=settings.tls.verify,
                ca=settings.tls.ca,
                client_certificate=settings.tls.client_certificate,
                client_key=settings.tls.client_key,
            )
    proxy = None if settings.proxy is None else ProxyAddress.from_url(settings.proxy.reveal())
    origin = Origin(host, port, tls, host if tls else None, proxy)
    return Upstream(
        name,
        pool=UpstreamPool(origin, connect_timeout_s=settings.timeouts.connect),
        host_header=url.netloc.rpartition("@")[2].encode("idna" if not url.netloc.isascii() else "ascii"),
        base_path=url.path.rstrip("/"),
        auth=settings.auth,
        api_keys=[key.reveal().encode() for key in settings.api_keys],
        extra_headers=[(key.encode(), value.reveal().encode()) for key, value in settings.headers.items()],
        query=settings.query,
        secrets=_secrets(settings),
        timeouts=Timeouts(settings.timeouts.first_byte, settings.timeouts.idle, settings.timeouts.total),
        injects_usage=settings.usage == "inject",
    )


def _secrets(settings: UpstreamConfig) -> list[bytes]:
    """The credentials of an upstream, wherever its configuration has them; of `Bearer x` the `x`."""
    found = [key.reveal() for key in settings.api_keys]
    named = [*settings.query.items(), *((name, value.reveal()) for name, value in settings.headers.items())]
    found += [value.rpartition(" ")[2] for name, value in named if is_credential_name(name)]
    return [secret.encode() for secret in found if len(secret) >= _SHORTEST_MASKED]


def _router(config: Config, upstreams: dict[str, Upstream]) -> Router:
    default = next(iter(upstreams))
    routes = {}
    for pattern, model in config.models.items():
        first = min(model.routes, key=lambda candidate: candidate.priority, default=RouteConfig())
        upstream = upstreams[first.upstream or default]
        routes[pattern] = ModelRoute(upstream, first.model, model.max_output_tokens, model.encoding)
    return Router(upstreams[default], PatternTable(routes), routes)


def _keyring(config: Config) -> Keyring:
    plans: dict[str | None, Plan] = {None: Plan(None, PatternTable(["*"]), PatternTable(["inference"]))}
    for name, plan in config.plans.items():
        plans[name] = Plan(name, PatternTable(plan.models), PatternTable(plan.endpoints))
    of_file = [
        Principal(key.id, plans[key.plan], _digest(key), key.expires.timestamp() if key.expires is not None else None)
        for key in config.keys
    ]
    return Keyring(of_file, plans)


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


def _prices(config: Config) -> PriceList:
    return PriceList(
        {
            pattern: None if model.price is None else Price.of(**msgspec.structs.asdict(model.price))
            for pattern, model in config.models.items()
        }
    )


def _encodings(config: Config) -> set[str]:
    """What may have to be counted with; any, where any model may come."""
    if not config.models:
        return {O200K, CL100K}
    return {model.encoding or encoding_of(pattern) for pattern, model in config.models.items()}


def _digest(key: KeyConfig) -> bytes:
    if key.secret is not None:
        return digest_of(key.secret.reveal().encode())
    return bytes.fromhex(key.secret_sha256.reveal() if key.secret_sha256 is not None else "")
