"""The settings of upstreams, and of the routes that lead to them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from proxy.config.kinds import (
    Count,
    Duration,
    Filename,
    Section,
    Share,
    UrlPath,
)
from proxy.config.values import Secret, SecretUrl  # noqa: TC001  as above


class TimeoutsConfig(Section, frozen=True):
    """How long an upstream may take; off: for ever."""

    connect: Annotated[Duration, Meta(description="name resolution, TCP and TLS")] = 5.0
    first_byte: Annotated[Duration | None, Meta(description="request sent to first byte of the answer")] = 600.0
    idle: Annotated[Duration | None, Meta(description="silence within an answer")] = 120.0
    total: Annotated[Duration | None, Meta(description="the whole exchange")] = None


class UpstreamTlsConfig(Section, frozen=True):
    """TLS towards an upstream."""

    verify: Annotated[bool, Meta(description="check the upstream's certificate and name")] = True
    ca: Annotated[Filename | None, Meta(description="PEM file of trusted authorities; null: the system's")] = None
    client_certificate: Annotated[Filename | None, Meta(description="PEM file with a client certificate")] = None
    client_key: Annotated[Filename | None, Meta(description="PEM file with the client certificate's key")] = None


class ProbeConfig(Section, frozen=True):
    """Asking an upstream whose circuit is open, so that no client's request has to."""

    path: Annotated[UrlPath, Meta(description="asked with GET; the upstream is well if the status is below 500")] = (
        "/models"
    )
    interval: Annotated[Duration, Meta(description="pause between two probes")] = 10.0


class UpstreamConfig(Section, frozen=True):
    """A model server."""

    base_url: Annotated[str, Meta(description="what an SDK would be given, such as https://api.openai.com/v1")]
    api_keys: Annotated[tuple[Secret, ...], Meta(description="credentials, used in turn")] = ()
    auth: Annotated[
        Literal["bearer", "api-key", "none", "passthrough"],
        Meta(description="how to authenticate; passthrough: with the client's own credential"),
    ] = "bearer"
    headers: Annotated[dict[str, Secret], Meta(description="headers set on every request")] = field(
        default_factory=dict
    )
    query: Annotated[dict[str, str], Meta(description="query members set on every request: Azure's api-version")] = (
        field(default_factory=dict)
    )
    usage: Annotated[
        Literal["inject", "as-asked"], Meta(description="inject: ask for usage in streams, hide it from the client")
    ] = "inject"
    max_concurrency: Annotated[
        Count | None, Meta(description="exchanges at once, of all workers; the rest wait; null: no limit")
    ] = None
    probe: Annotated[ProbeConfig | None, Meta(description="ask while its circuit is open; null: clients do")] = None
    timeouts: Annotated[TimeoutsConfig, Meta(description="how long it may take")] = field(
        default_factory=TimeoutsConfig
    )
    tls: Annotated[UpstreamTlsConfig, Meta(description="TLS towards it")] = field(default_factory=UpstreamTlsConfig)
    proxy: Annotated[SecretUrl | None, Meta(description="outbound HTTP proxy, http://[USER:PASSWORD@]HOST:PORT")] = None


class RouteConfig(Section, frozen=True):
    """One upstream that serves a model."""

    upstream: Annotated[str, Meta(description="its name; empty: the first upstream")] = ""
    model: Annotated[str | None, Meta(description="the upstream's own name for the model; null: as asked")] = None
    weight: Annotated[Share, Meta(description="share among routes of the same priority")] = 1.0
    priority: Annotated[int, Meta(ge=0, le=1000, description="lowest first")] = 0
