"""What each of several workers has of what all of them may do together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

if TYPE_CHECKING:
    from proxy.config.settings import Config
    from proxy.config.upstreams import UpstreamConfig


def share_of(config: Config, number: int) -> Config:
    """The configuration for the worker of this number, from 1: its part of each upstream's `max_concurrency`.

    All parts together are the whole, unless there are more workers than that: each may ask one at least.
    """
    upstreams = {name: _share(upstream, config.server.workers, number) for name, upstream in config.upstreams.items()}
    return structs.replace(config, upstreams=upstreams)


def _share(upstream: UpstreamConfig, workers: int, number: int) -> UpstreamConfig:
    if upstream.max_concurrency is None:
        return upstream
    each, left = divmod(upstream.max_concurrency, workers)
    return structs.replace(upstream, max_concurrency=max(1, each + (number <= left)))
