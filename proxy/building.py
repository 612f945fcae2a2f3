"""From settings to what the phases know: upstreams, routes, plans, keys and prices."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from proxy.config.upstreams import RouteConfig
from proxy.config.values import is_credential_name
from proxy.core.circuit import Circuit
from proxy.core.cooldown import Credentials
from proxy.core.limits import KeyLimits, Terms, merged, parse_limit
from proxy.core.patterns import PatternTable
from proxy.core.quota import Kind
from proxy.core.retry import RetryPolicy
from proxy.core.retry_budget import RetryBudget
from proxy.core.throttle import Throttle
from proxy.core.tokens import CL100K, O200K, encodings_like
from proxy.phases.authenticate import Keyring, Plan, Principal, digest_of, terms_of
from proxy.phases.places import QueueLimits
from proxy.phases.route import Model, Route, Router
from proxy.phases.upstreams import Health, Probe, Timeouts, Upstream
from proxy.upstream.connect import Origin, ProxyAddress, tls_context
from proxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.config.settings import Config, KeyConfig, ModelConfig, ModelLimitsConfig, PlanConfig
    from proxy.config.upstreams import UpstreamConfig, UpstreamTlsConfig

# local servers are given placeholders such as "x" or "EMPTY": masking those would tear words of error messages apart
_SHORTEST_MASKED = 8
_DEFAULT_PORTS = {"http": 80, "https": 443}


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


def upstream_tls(settings: UpstreamTlsConfig) -> ssl.SSLContext:
    """The TLS context for upstreams of such settings. Takes 20 ms, and 0.8 MiB for the system's authorities.

    Raises `OSError` for a certificate or a key that cannot be used.
    """
    return tls_context(
        verify=settings.verify,
        ca=settings.ca,
        client_certificate=settings.client_certificate,
        client_key=settings.client_key,
    )


def upstream_of(
    name: str, settings: UpstreamConfig, health: Health, tls_of: Callable[[UpstreamTlsConfig], ssl.SSLContext]
) -> Upstream:
    """An upstream and its connections. Raises `OSError` as `tls_of` does, which is `upstream_tls` or remembers it."""
    url = urlsplit(settings.base_url)
    host = url.hostname or ""
    port = url.port or _DEFAULT_PORTS[url.scheme]
    tls = None
    if url.scheme == "https":
        with _naming(f"upstreams.{name}.tls"):
            tls = tls_of(settings.tls)
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
        secrets=_secrets_of(settings),
        timeouts=Timeouts(settings.timeouts.first_byte, settings.timeouts.idle, settings.timeouts.total),
        injects_usage=settings.usage == "inject",
        health=health,
        probe=None if settings.probe is None else Probe(settings.probe.path, settings.probe.interval),
    )


def health_of(settings: UpstreamConfig, config: Config) -> Health:
    """How an upstream does of which nothing is known yet."""
    breaker = config.breaker
    return Health(
        Circuit(
            failures=breaker.failures,
            cooldown_s=breaker.cooldown,
            max_cooldown_s=breaker.max_cooldown,
            failure_share=breaker.failure_share,
            least_results=breaker.least_results,
        ),
        Credentials(len(settings.api_keys)),
        RetryBudget(config.retries.budget),
        settings.max_concurrency,
        is_probed=settings.probe is not None,
    )


def _secrets_of(settings: UpstreamConfig) -> list[bytes]:
    """The credentials of an upstream, wherever its configuration has them; of `Bearer x` the `x`."""
    found = [key.reveal() for key in settings.api_keys]
    named = [*settings.query.items(), *((name, value.reveal()) for name, value in settings.headers.items())]
    found += [value.rpartition(" ")[2] for name, value in named if is_credential_name(name)]
    return [secret.encode() for secret in found if len(secret) >= _SHORTEST_MASKED]


def router_of(config: Config, upstreams: dict[str, Upstream]) -> Router:
    """Which of `upstreams` serves which model."""
    default = next(iter(upstreams))
    models = {}
    for pattern, model in config.models.items():
        routes = [
            Route(upstreams[one.upstream or default], one.model, one.weight, one.priority) for one in _routes_of(model)
        ]
        models[pattern] = Model(tuple(routes), model.max_output_tokens, model.encoding)
    return Router(upstreams[default], PatternTable(models), models)


def _routes_of(model: ModelConfig) -> list[RouteConfig]:
    """Those of a model that are used, the first choice first."""
    return sorted((one for one in model.routes or (RouteConfig(),) if one.weight > 0), key=lambda one: one.priority)


def queue_limits_of(config: Config) -> QueueLimits:
    """How many may wait for upstreams, and for how long."""
    return QueueLimits(config.queue.max_waiting, config.queue.max_bytes, config.queue.max_wait)


def retry_policy_of(config: Config) -> RetryPolicy:
    """What is tried again, and when."""
    retries = config.retries
    return RetryPolicy(retries.attempts, retries.backoff, retries.max_backoff)


def keyring_of(config: Config) -> Keyring:
    """The keys of the configuration, and the plans that stored keys may be on."""
    plans: dict[str | None, Plan] = {None: Plan(None, PatternTable(["*"]), PatternTable(["inference"]))}
    for name, plan in config.plans.items():
        terms = _terms_of(plan)
        limits = KeyLimits(terms)
        endpoints = PatternTable(plan.endpoints)
        plans[name] = Plan(
            name, PatternTable(plan.models), endpoints, terms, limits, plan.weight, plan.cut_when_exhausted
        )
    return Keyring([_principal(key, plans[key.plan]) for key in config.keys], plans)


def throttle_of(config: Config) -> Throttle | None:
    """What bounds failed authentications; None where nothing does."""
    limit = config.server.auth_failures
    return None if limit is None else Throttle(parse_limit(limit, Kind.REQUESTS))


def _terms_of(plan: PlanConfig) -> Terms:
    """The limits of a plan, those narrowed to models among them."""
    narrowed: list[tuple[str, PlanConfig | ModelLimitsConfig]] = [("", plan), *plan.model_limits.items()]
    return Terms(
        tuple(parse_limit(text, Kind.REQUESTS, model) for model, limits in narrowed for text in limits.requests),
        tuple(parse_limit(text, Kind.TOKENS, model) for model, limits in narrowed for text in limits.tokens),
        tuple(parse_limit(text, Kind.SPEND, model) for model, limits in narrowed for text in limits.spend),
        plan.concurrency,
    )


def _principal(key: KeyConfig, plan: Plan) -> Principal:
    limits = plan.limits
    if key.limits is not None:
        limits = KeyLimits(merged(plan.terms, terms_of(msgspec.structs.asdict(key.limits))))
    expires_s = key.expires.timestamp() if key.expires is not None else None
    return Principal(key.id, plan, _digest(key), expires_s, limits)


def encodings_of(config: Config) -> set[str]:
    """What may have to be counted with, by the names that first choices have for models; any, where any may come."""
    if not config.models:
        return {O200K, CL100K}
    found: set[str] = set()
    for pattern, model in config.models.items():
        found |= {model.encoding} if model.encoding else encodings_like(_routes_of(model)[0].model or pattern)
    return found


def _digest(key: KeyConfig) -> bytes:
    if key.secret is not None:
        return digest_of(key.secret.reveal().encode())
    return bytes.fromhex(key.secret_sha256.reveal() if key.secret_sha256 is not None else "")
