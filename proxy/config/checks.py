"""What no single setting shows: settings that contradict each other, and notations too rich for a type."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from proxy.config.extras import can_trace
from proxy.config.problems import dotted
from proxy.config.read import nearest
from proxy.config.values import is_in_memory
from proxy.core.addresses import parse_network
from proxy.core.limits import parse_limit
from proxy.core.quota import Calendar, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from urllib.parse import SplitResult

    from proxy.config.problems import Findings, Path
    from proxy.config.settings import (
        Config,
        KeyConfig,
        LimitsConfig,
        ModelConfig,
        ModelLimitsConfig,
        PlanConfig,
        ServerConfig,
        TracingConfig,
    )
    from proxy.config.upstreams import UpstreamConfig
    from proxy.config.values import Secret

_STORES: Final = ("memory", "redis", "rediss", "redis+sentinel", "redis+cluster", "redis+unix", "unix")
_LEDGERS: Final = ("sqlite", "postgresql")
_WILDCARD_HOSTS: Final = frozenset({"0.0.0.0", "::"})
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SENDABLE: Final = re.compile(r"[!-~]+")  # printable ASCII without spaces: what a credential in a header may hold
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_FIELD_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?|")
# framing, routing and what keeps a stream readable: written by Sluice itself
_OWN_FIELDS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host"}
    | {"keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_LONGEST_S: Final = {Calendar.DAY: 86_400.0, Calendar.MONTH: 31 * 86_400.0, Calendar.YEAR: 366 * 86_400.0}
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


def check(config: Config, findings: Findings) -> None:
    """Note every contradiction in `config` that no type rules out."""
    _check_listeners(config, findings)
    _check_clients(config.server, findings)
    _check_backends(config, findings)
    findings.expect(config.upstreams, ("upstreams",), "must name at least one upstream, with its base_url")
    for name, upstream in config.upstreams.items():
        _check_upstream(upstream, ("upstreams", name), findings)
    for pattern, model in config.models.items():
        _check_model(model, ("models", pattern), config, findings)
    for name, plan in config.plans.items():
        _check_plan(plan, ("plans", name), findings)
    for index, key in enumerate(config.keys):
        _check_key(key, ("keys", index), config, findings)
    _check_distinct(config.keys, findings)
    _check_memory(config, findings)
    _check_tracing(config.tracing, findings)
    for section, shorter, longer in (("retries", "backoff", "max_backoff"), ("breaker", "cooldown", "max_cooldown")):
        values = getattr(config, section)
        fits = getattr(values, shorter) <= getattr(values, longer) or findings.spoiled((section, shorter))
        findings.expect(fits, (section, longer), f"must not be shorter than {shorter}")


def _check_listeners(config: Config, findings: Findings) -> None:
    server, ops = config.server, config.ops
    same_host = server.host == ops.host or _WILDCARD_HOSTS & {server.host, ops.host}
    collide = same_host and server.port == ops.port != 0
    if collide and not findings.spoiled(("server",)):
        at = ("ops", "port") if ("ops", "port") in findings.lines else ("server", "port")
        findings.refuse(at, "makes one address of server and ops, which need one each")
    _check_pair(findings, ("server", "tls"), certificate=server.tls.certificate, private_key=server.tls.private_key)
    for index, origin in enumerate(server.cors_origins):
        valid = origin == "*" or _ORIGIN.fullmatch(origin)
        findings.expect(valid, ("server", "cors_origins", index), "must be * or an origin such as https://example.com")


def _check_clients(server: ServerConfig, findings: Findings) -> None:
    """Who clients are, and how often they may fail to say."""
    for index, network in enumerate(server.trusted_proxies):
        try:
            parse_network(network)
        except ValueError as error:
            findings.refuse(("server", "trusted_proxies", index), f"{error}, not {network[:60]!a}")
    if server.auth_failures is not None:
        at = ("server", "auth_failures")
        try:
            slides = isinstance(parse_limit(server.auth_failures, Kind.REQUESTS).window, int)
            findings.expect(slides, at, "must have a window of seconds, minutes or hours")
        except ValueError as error:
            findings.refuse(at, f"{error}, not {server.auth_failures[:60]!a}")


def _check_pair(findings: Findings, path: Path, **files: str | None) -> None:
    """A certificate and its key stand together or not at all."""
    (first, first_value), (second, second_value) = files.items()
    if not findings.spoiled((*path, first)) and not findings.spoiled((*path, second)):
        findings.expect(first_value or not second_value, (*path, first), f"is needed with {second}")
        findings.expect(second_value or not first_value, (*path, second), f"is needed with {first}")


def _check_backends(config: Config, findings: Findings) -> None:
    store, ledger = config.store.url.reveal(), config.ledger.url.reveal()
    scheme = store.partition("://")[0] if "://" in store else ""
    findings.expect(scheme in _STORES, ("store", "url"), "must start with one of " + _schemes(_STORES))
    if (problem := against_workers(config)) is not None and not findings.spoiled(("store",)):
        findings.refuse(("server", "workers"), problem)
    known = "://" in ledger and ledger.partition("://")[0] in _LEDGERS
    findings.expect(known, ("ledger", "url"), "must start with one of " + _schemes(_LEDGERS))


def against_workers(config: Config) -> str | None:
    """What `config` keeps in the memory of a process, and several workers would each have of their own."""
    if config.server.workers == 1:
        return None
    if config.store.url.reveal().startswith("memory:"):
        return "more than one worker needs a shared store, such as redis://: limits would hold per worker"
    if is_in_memory(config.ledger.url):
        return "more than one worker needs a ledger that they share: in memory each would have its own"
    return None


def _schemes(names: Iterable[str]) -> str:
    return ", ".join(f"{name}://" for name in names)


def _split(url: str) -> SplitResult | None:
    """The parts of a URL with a host and no port out of range; None for anything else."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 and not re.search(r"[^!-~]", url) else None
    except ValueError:
        return None


def _check_upstream(upstream: UpstreamConfig, path: Path, findings: Findings) -> None:
    _check_url(upstream.base_url, (*path, "base_url"), findings, "api_keys or headers", "the setting query")
    _check_credentials(upstream, path, findings)
    _check_headers(upstream.headers, (*path, "headers"), findings)
    tls = upstream.tls
    _check_pair(findings, (*path, "tls"), client_certificate=tls.client_certificate, client_key=tls.client_key)
    if upstream.proxy is not None:
        proxy = _split(upstream.proxy.reveal())
        valid = proxy and proxy.scheme == "http" and proxy.path in ("", "/") and not proxy.query and not proxy.fragment
        findings.expect(valid, (*path, "proxy"), "must be http://HOST:PORT, with USER:PASSWORD@ before it if need be")


def _check_url(url: str, at: Path, findings: Findings, for_credentials: str, for_query: str) -> None:
    # no message quotes the URL: whoever puts a credential there should not find it in a log
    parts = _split(url)
    findings.expect(parts and parts.scheme in ("http", "https"), at, "must be an http:// or https:// URL with a host")
    if parts is not None and "@" in parts.netloc:
        findings.refuse(at, f"must not hold credentials: use {for_credentials}")
    findings.expect("?" not in url, at, f"must not have a query: use {for_query}")
    findings.expect("#" not in url, at, "must not have a fragment")


def _check_tracing(tracing: TracingConfig, findings: Findings) -> None:
    at = ("tracing", "endpoint")
    _check_headers(tracing.headers, ("tracing", "headers"), findings)
    if tracing.endpoint is not None:
        _check_url(tracing.endpoint, at, findings, "headers", "headers")
        findings.expect(can_trace(), at, "needs OpenTelemetry, which is missing: install the extra `otel`")


def _check_credentials(upstream: UpstreamConfig, path: Path, findings: Findings) -> None:
    at = (*path, "api_keys")
    if findings.spoiled((*path, "auth")):
        return
    if upstream.auth in ("bearer", "api-key"):
        message = f"auth is {upstream.auth} and needs a key here; set auth: none for an upstream that asks for none"
        findings.expect(upstream.api_keys, at, message)
    else:
        findings.expect(not upstream.api_keys, at, f"are never used with auth: {upstream.auth}")
    for index, api_key in enumerate(upstream.api_keys):
        _check_sendable(api_key.reveal(), (*at, index), findings)


def _check_sendable(secret: str, path: Path, findings: Findings) -> None:
    findings.expect(secret, path, "is empty")
    findings.expect(_SENDABLE.fullmatch(secret), path, "must be printable ASCII without spaces")


def _check_headers(headers: Mapping[str, Secret], path: Path, findings: Findings) -> None:
    seen: set[str] = set()
    for name, value in headers.items():
        at = (*path, name)
        findings.expect(_FIELD_NAME.fullmatch(name), at, "is no name of a header")
        findings.expect(name.lower() not in _OWN_FIELDS, at, "is a header that Sluice writes itself")
        findings.expect(name.lower() not in seen, at, "is set twice, in another case")
        findings.expect(_FIELD_VALUE.fullmatch(value.reveal()), at, "must be printable ASCII, without spaces around it")
        seen.add(name.lower())


def _check_model(model: ModelConfig, path: Path, config: Config, findings: Findings) -> None:
    for index, route in enumerate(model.routes):
        if route.upstream and config.upstreams and route.upstream not in config.upstreams:
            hint = nearest(route.upstream, config.upstreams)
            at = (*path, "routes", index, "upstream")
            findings.refuse(at, f"there is no upstream {route.upstream[:128]!a}{hint}")
    some = not model.routes or any(route.weight > 0 for route in model.routes)
    findings.expect(some, (*path, "routes"), "all have weight 0, so nothing would serve the model")


def _check_limits(limits: PlanConfig | LimitsConfig | ModelLimitsConfig, path: Path, findings: Findings) -> None:
    for kind in ("requests", "tokens", "spend"):
        for index, limit in enumerate(getattr(limits, kind) or ()):
            try:
                parse_limit(limit, Kind(kind))
            except ValueError as error:
                findings.refuse((*path, kind, index), f"{error}, not {limit[:60]!a}")


def _check_memory(config: Config, findings: Findings) -> None:
    """What a limit by the calendar has counted is asked of the ledger after a restart: it must not be deleted yet."""
    if config.ledger.keep is None or findings.spoiled(("ledger", "keep")):
        return
    sections: list[tuple[Path, PlanConfig | LimitsConfig | ModelLimitsConfig]] = []
    for name, plan in config.plans.items():
        sections.append((("plans", name), plan))
        sections += [(("plans", name, "model_limits", model), one) for model, one in plan.model_limits.items()]
    sections += [(("keys", index, "limits"), key.limits) for index, key in enumerate(config.keys) if key.limits]
    for path, section in sections:
        for kind in ("requests", "tokens", "spend"):
            for index, limit in enumerate(getattr(section, kind) or ()):
                at = (*path, kind, index)
                if not findings.spoiled(at) and _calendar_s(limit) > config.ledger.keep:
                    where = dotted(at)
                    findings.refuse(("ledger", "keep"), f"is shorter than the window of {where} ({limit})")
                    return


def _calendar_s(limit: str) -> float:
    """The longest that a window by the calendar lasts, in seconds; 0 for one that slides."""
    window = parse_limit(limit, Kind.SPEND).window
    return _LONGEST_S[window] if isinstance(window, Calendar) else 0.0


def _check_plan(plan: PlanConfig, path: Path, findings: Findings) -> None:
    _check_limits(plan, path, findings)
    for pattern, limits in plan.model_limits.items():
        _check_limits(limits, (*path, "model_limits", pattern), findings)
    for index, endpoint in enumerate(plan.endpoints):
        at = (*path, "endpoints", index)
        known = endpoint in ("inference", "stateful") or endpoint.startswith("/")
        hint = nearest(endpoint, ("inference", "stateful"))
        findings.expect(known, at, f"must be inference, stateful or a path glob such as /files*{hint}")
        findings.expect(not endpoint.startswith("/v1/"), at, "must be a path without the /v1 before it")


def _check_key(key: KeyConfig, path: Path, config: Config, findings: Findings) -> None:
    secret_path, digest_path = (*path, "secret"), (*path, "secret_sha256")
    if key.secret is not None:
        _check_sendable(key.secret.reveal(), secret_path, findings)
    if key.secret_sha256 is not None:
        findings.expect(_SHA256.fullmatch(key.secret_sha256.reveal()), digest_path, "must be 64 hex digits")
        findings.expect(key.secret is None, digest_path, "stands beside secret: keep one of the two")
    elif key.secret is None and not findings.spoiled(digest_path):
        findings.refuse(secret_path, "is required, or secret_sha256 in its place")
    unreadable = not config.plans and findings.spoiled(("plans",))
    if key.plan is not None and key.plan not in config.plans and not unreadable:
        findings.refuse((*path, "plan"), f"there is no plan {key.plan[:128]!a}{nearest(key.plan, config.plans)}")
    if key.limits is not None:
        _check_limits(key.limits, (*path, "limits"), findings)


def _check_distinct(keys: Iterable[KeyConfig], findings: Findings) -> None:
    """No two keys share an id, which names them, or a secret, which would make one of them unreachable."""
    ids: dict[str, int] = {}
    digests: dict[str, int] = {}
    for index, key in enumerate(keys):
        first = ids.setdefault(key.id, index)
        findings.expect(first == index, ("keys", index, "id"), f"is the id of keys[{first}]")
        if key.secret:
            at, digest = "secret", hashlib.sha256(key.secret.reveal().encode()).hexdigest()
        elif key.secret_sha256:
            at, digest = "secret_sha256", key.secret_sha256.reveal().lower()
        else:
            continue
        first = digests.setdefault(digest, index)
        findings.expect(first == index, ("keys", index, at), f"is the secret of keys[{first}]")
