"""The configuration: every setting, its type, bounds, default and one line of meaning.

These structs are the one definition: `file` reads YAML into them, `checks` compares settings with each
other, `schema` writes the JSON Schema and the masked dump from them. Attribute names are the YAML names;
durations are seconds here. Every setting has a default but an upstream's `base_url` and what makes a key a key.
"""

from __future__ import annotations

import functools
from datetime import datetime  # noqa: TC003  msgspec reads the annotations when the file is loaded
from typing import Annotated, Literal

from msgspec import Meta, field, inspect

from proxy.config.kinds import (
    Bytes,
    Count,
    Duration,
    Filename,
    Glob,
    Host,
    Limit,
    Name,
    Pause,
    Port,
    Ratio,
    Retention,
    Section,
    Usd,
)
from proxy.config.upstreams import RouteConfig, UpstreamConfig  # noqa: TC001  as above
from proxy.config.values import Secret, SecretUrl


class ServerTlsConfig(Section, frozen=True):
    """TLS for the API's listener; both files or neither."""

    certificate: Annotated[Filename | None, Meta(description="PEM file with the certificate chain")] = None
    private_key: Annotated[Filename | None, Meta(description="PEM file with the certificate's key")] = None


class ServerConfig(Section, frozen=True):
    """The listener of the API."""

    host: Annotated[Host, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="TCP port; 0 lets the system choose")] = 8080
    workers: Annotated[int, Meta(ge=1, le=1024, description="processes; more than one needs a shared store")] = 1
    max_connections: Annotated[Count, Meta(description="open connections per worker")] = 9000
    max_request_bytes: Annotated[Bytes, Meta(description="largest request body that is read whole")] = 26214400
    request_read_timeout: Annotated[Duration, Meta(description="the longest wait for a request's body")] = 30.0
    write_stall: Annotated[Duration, Meta(description="a client that accepts no byte for this long is cut")] = 60.0
    keepalive_comment: Annotated[
        Duration | None, Meta(description="comment between events of a stream silent for this long; off: none")
    ] = None
    cors_origins: Annotated[tuple[str, ...], Meta(description='origins of browsers that may call; ["*"] for all')] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], Meta(description="addresses or networks whose X-Forwarded-For or Forwarded is believed")
    ] = ()
    auth_failures: Annotated[
        Limit | None, Meta(description="requests without a good key per client address, then 429; null: no limit")
    ] = "60/minute"
    tls: Annotated[ServerTlsConfig, Meta(description="TLS for this listener")] = field(default_factory=ServerTlsConfig)


class OpsConfig(Section, frozen=True):
    """The listener for operators, never exposed with the API: /metrics /healthz /readyz /admin."""

    host: Annotated[Host, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="TCP port; 0 lets the system choose")] = 9090
    admin_token: Annotated[Secret, Meta(description="bearer token of the admin API; empty: it is off")] = field(
        default_factory=Secret
    )


class StoreConfig(Section, frozen=True):
    """Where quotas are counted."""

    url: Annotated[
        SecretUrl,
        Meta(description="memory://, redis://, rediss://, redis+sentinel://, redis+cluster://, redis+unix://"),
    ] = field(default_factory=lambda: SecretUrl("memory://"))
    timeout: Annotated[Duration, Meta(description="the longest that a shared store may take to answer")] = 0.25
    on_failure: Annotated[
        Literal["deny", "allow"], Meta(description="store out of reach: deny answers 503, allow admits without limits")
    ] = "deny"


class LedgerConfig(Section, frozen=True):
    """Where keys and usage are kept."""

    url: Annotated[SecretUrl, Meta(description="sqlite:///FILE or postgresql://USER@HOST/DATABASE")] = field(
        default_factory=lambda: SecretUrl("sqlite:///sluice.db")
    )
    keep: Annotated[
        Retention | None, Meta(description="exchanges older than this are deleted; null: they are kept for ever")
    ] = None


class PriceConfig(Section, frozen=True):
    """What tokens cost, in USD per million."""

    input: Annotated[Usd, Meta(description="prompt tokens")] = 0.0
    cached_input: Annotated[Usd | None, Meta(description="prompt tokens from a cache; null: as input")] = None
    cache_write: Annotated[Usd | None, Meta(description="prompt tokens put into a cache; null: as input")] = None
    audio_input: Annotated[Usd | None, Meta(description="prompt tokens of audio; null: as input")] = None
    image_input: Annotated[Usd | None, Meta(description="prompt tokens of images; null: as input")] = None
    output: Annotated[Usd, Meta(description="completion tokens, reasoning included")] = 0.0
    audio_output: Annotated[Usd | None, Meta(description="completion tokens of audio; null: as output")] = None
    audio_minute: Annotated[Usd, Meta(description="a minute of audio, where it is charged by duration; USD")] = 0.0


class ModelConfig(Section, frozen=True):
    """How a model, or all that match a pattern, is served."""

    routes: Annotated[tuple[RouteConfig, ...], Meta(description="who serves it; none: the first upstream")] = ()
    price: Annotated[
        PriceConfig | None, Meta(description="USD per million tokens; null: as in the bundled table, else free")
    ] = None
    max_output_tokens: Annotated[Count, Meta(description="reserved when the request names no maximum")] = 16384
    encoding: Annotated[
        Literal["o200k_base", "cl100k_base"] | None,
        Meta(description="tokenizer that counts where the upstream does not; null: by the model's name"),
    ] = None


class ModelLimitsConfig(Section, frozen=True):
    """Limits of a plan for some models, beside those for all."""

    requests: Annotated[tuple[Limit, ...], Meta(description="requests per window")] = ()
    tokens: Annotated[tuple[Limit, ...], Meta(description="prompt and output tokens per window")] = ()
    spend: Annotated[tuple[Limit, ...], Meta(description="USD per window, may be decimal")] = ()


class PlanConfig(Section, frozen=True):
    """A named set of limits; each applies per key."""

    requests: Annotated[tuple[Limit, ...], Meta(description="requests per window")] = ()
    tokens: Annotated[tuple[Limit, ...], Meta(description="prompt and output tokens per window")] = ()
    spend: Annotated[tuple[Limit, ...], Meta(description="USD per window, may be decimal")] = ()
    concurrency: Annotated[Count | None, Meta(description="exchanges at once; null: no limit")] = None
    cut_when_exhausted: Annotated[
        bool, Meta(description="end a stream that outgrows what it reserved when a token or spend limit is used up")
    ] = False
    model_limits: Annotated[
        dict[Glob, ModelLimitsConfig], Meta(description="further limits by model: a name or a glob")
    ] = field(default_factory=dict)
    weight: Annotated[float, Meta(gt=0, le=1_000_000, description="share in the fair queue")] = 1.0
    models: Annotated[tuple[Glob, ...], Meta(description="models it may use: names or globs")] = ("*",)
    endpoints: Annotated[tuple[Glob, ...], Meta(description="inference, stateful, or path globs such as /files*")] = (
        "inference",
    )


class LimitsConfig(Section, frozen=True):
    """Limits of one key, each in place of its plan's; null: the plan's."""

    requests: Annotated[tuple[Limit, ...] | None, Meta(description="requests per window")] = None
    tokens: Annotated[tuple[Limit, ...] | None, Meta(description="prompt and output tokens per window")] = None
    spend: Annotated[tuple[Limit, ...] | None, Meta(description="USD per window, may be decimal")] = None
    concurrency: Annotated[Count | None, Meta(description="exchanges at once")] = None


class KeyConfig(Section, frozen=True):
    """A credential that clients present: `secret` or `secret_sha256`, not both."""

    id: Annotated[Name, Meta(description="its name in logs, metrics and the ledger")]
    secret: Annotated[Secret | None, Meta(description="what clients present")] = None
    secret_sha256: Annotated[Secret | None, Meta(description="SHA-256 of the secret, 64 hex digits")] = None
    plan: Annotated[str | None, Meta(description="the plan whose limits apply; null: no limits")] = None
    expires: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="refused from then on: 2027-01-01T00:00:00Z")
    ] = None
    limits: Annotated[LimitsConfig | None, Meta(description="limits in place of the plan's")] = None


class QueueConfig(Section, frozen=True):
    """Waiting for an upstream at `max_concurrency`."""

    max_waiting: Annotated[int, Meta(ge=0, le=1_000_000, description="requests that may wait")] = 1000
    max_bytes: Annotated[Bytes, Meta(description="request bodies held by all that wait")] = 268435456
    max_wait: Annotated[Pause, Meta(description="how long each may wait")] = 30.0


class RetriesConfig(Section, frozen=True):
    """Repeating what failed before a byte went downstream."""

    attempts: Annotated[int, Meta(ge=1, le=100, description="tries in all")] = 3
    backoff: Annotated[Pause, Meta(description="pause before the second try, doubled for each further one")] = 0.2
    max_backoff: Annotated[Pause, Meta(description="the longest pause")] = 5.0
    budget: Annotated[Ratio, Meta(description="retries at an upstream that fails, as a share of recent requests")] = 0.2
    hedge_after: Annotated[
        Duration | None, Meta(description="a first byte later than this starts a try on another route; off: none")
    ] = None


class BreakerConfig(Section, frozen=True):
    """Leaving an upstream alone that keeps failing."""

    failures: Annotated[Count, Meta(description="failures in a row that open the circuit")] = 5
    failure_share: Annotated[Ratio, Meta(description="share of failures among recent results that opens it")] = 0.5
    least_results: Annotated[Count, Meta(description="results within 10 s before their share counts")] = 20
    cooldown: Annotated[Duration, Meta(description="first pause, doubled for each further one")] = 10.0
    max_cooldown: Annotated[Duration, Meta(description="the longest pause")] = 300.0


class ShutdownConfig(Section, frozen=True):
    """Stopping without cutting streams."""

    notice: Annotated[Pause, Meta(description="new connections are still served after the signal")] = 5.0
    drain: Annotated[Pause, Meta(description="exchanges in flight may finish")] = 120.0


class LogConfig(Section, frozen=True):
    """The log on standard output."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="the least that is logged")] = (
        "info"
    )
    format: Annotated[Literal["json", "console"], Meta(description="json: one object a line; console: for people")] = (
        "json"
    )


class TracingConfig(Section, frozen=True):
    """Traces for OpenTelemetry, with the extra `otel`. A client's own `traceparent` is followed."""

    endpoint: Annotated[
        str | None, Meta(description="an OTLP/HTTP collector, such as http://localhost:4318; null: no traces")
    ] = None
    sample: Annotated[Ratio, Meta(description="share that is recorded of the traces that begin here")] = 1.0
    service_name: Annotated[Name, Meta(description="what traces call this service")] = "sluice"
    headers: Annotated[dict[str, Secret], Meta(description="headers of every export, such as credentials")] = field(
        default_factory=dict
    )


class Config(Section, frozen=True):
    """The whole configuration of Sluice."""

    server: Annotated[ServerConfig, Meta(description="the API's listener")] = field(default_factory=ServerConfig)
    ops: Annotated[OpsConfig, Meta(description="the operators' listener")] = field(default_factory=OpsConfig)
    store: Annotated[StoreConfig, Meta(description="where quotas are counted")] = field(default_factory=StoreConfig)
    ledger: Annotated[LedgerConfig, Meta(description="keys and usage")] = field(default_factory=LedgerConfig)
    upstreams: Annotated[dict[Name, UpstreamConfig], Meta(description="model servers by name")] = field(
        default_factory=dict
    )
    models: Annotated[dict[Glob, ModelConfig], Meta(description="by name or glob; none: the first upstream")] = field(
        default_factory=dict
    )
    plans: Annotated[dict[Name, PlanConfig], Meta(description="sets of limits by name")] = field(default_factory=dict)
    keys: Annotated[tuple[KeyConfig, ...], Meta(description="clients' credentials")] = ()
    queue: Annotated[QueueConfig, Meta(description="waiting for an upstream")] = field(default_factory=QueueConfig)
    retries: Annotated[RetriesConfig, Meta(description="repeating failures")] = field(default_factory=RetriesConfig)
    breaker: Annotated[BreakerConfig, Meta(description="upstreams that fail")] = field(default_factory=BreakerConfig)
    shutdown: Annotated[ShutdownConfig, Meta(description="stopping")] = field(default_factory=ShutdownConfig)
    log: Annotated[LogConfig, Meta(description="logging")] = field(default_factory=LogConfig)
    tracing: Annotated[TracingConfig, Meta(description="traces")] = field(default_factory=TracingConfig)


@functools.cache
def config_type() -> inspect.Type:
    """The structs above as msgspec describes them. Described once in a process: it takes 5 ms."""
    return inspect.type_info(Config)
