"""The composition root: from a configuration to a running proxy. This module alone names concrete classes."""

from __future__ import annotations

import contextlib
import secrets
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.config.settings import RouteConfig
from proxy.config.values import is_credential_name
from proxy.core.patterns import PatternTable
from proxy.phases.authenticate import Keyring, Plan, Principal, digest_of
from proxy.phases.models import Catalogue
from proxy.phases.pipeline import Limits, Pipeline
from proxy.phases.route import ModelRoute, Router, Timeouts, Upstream
from proxy.server.cors import Cors
from proxy.server.openai_api import OpenAIApi
from proxy.server.ops import OpsApi
from proxy.tasks import BackgroundTasks
from proxy.upstream.connect import Origin, ProxyAddress, tls_context
from proxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    import structlog

    from proxy.config.settings import Config, KeyConfig, UpstreamConfig
    from proxy.telemetry.metrics import Metrics

# local servers are given placeholders such as "x" or "EMPTY": masking those would tear words of error messages apart
_SHORTEST_MASKED = 8
_DEFAULT_PORTS = {"http": 80, "https": 443}


class App:
    """A proxy put together from `config`, ready to be given listeners; knows when it is ready and when it drains."""

    def __init__(self, config: Config, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
        self.config = config
        self.log = log
        self.is_draining = False
        self.tasks = BackgroundTasks()
        self.upstreams = {name: _upstream(name, settings) for name, settings in config.upstreams.items()}
        via_name = b"sluice-" + secrets.token_hex(4).encode()
        router = _router(config, self.upstreams)
        self.pipeline = Pipeline(
            keyring=_keyring(config),
            router=router,
            catalogue=Catalogue(router, self.tasks),
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

    def problems(self) -> list[str]:
        """What keeps this process from being ready."""
        return ["draining"] if self.is_draining else []

    def drain(self) -> None:
        """No new work is wanted: `/readyz` says so, and answers close their connections."""
        self.is_draining = True
        self.api.is_draining = True

    async def close(self) -> None:
        """Let go of what outlives exchanges."""
        await self.tasks.close(patience_s=1.0)
        for upstream in self.upstreams.values():
            upstream.pool.close()


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
        routes[pattern] = ModelRoute(upstreams[first.upstream or default], first.model)
    return Router(upstreams[default], PatternTable(routes), routes)


def _keyring(config: Config) -> Keyring:
    unlimited = Plan(None, PatternTable(["*"]), PatternTable(["inference"]))
    plans = {
        name: Plan(name, PatternTable(plan.models), PatternTable(plan.endpoints)) for name, plan in config.plans.items()
    }
    return Keyring(
        Principal(
            key.id,
            plans[key.plan] if key.plan is not None else unlimited,
            _digest(key),
            key.expires.timestamp() if key.expires is not None else None,
        )
        for key in config.keys
    )


def _digest(key: KeyConfig) -> bytes:
    if key.secret is not None:
        return digest_of(key.secret.reveal().encode())
    return bytes.fromhex(key.secret_sha256.reveal() if key.secret_sha256 is not None else "")
