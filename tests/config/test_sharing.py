"""The workers' parts of an upstream's limit add up to it, and nobody has none."""

from __future__ import annotations

import pytest

from proxy.config.settings import Config, ServerConfig
from proxy.config.sharing import share_of
from proxy.config.upstreams import UpstreamConfig


@pytest.mark.parametrize(
    ("limit", "workers", "shares"),
    [(8, 1, [8]), (8, 2, [4, 4]), (7, 3, [3, 2, 2]), (2, 2, [1, 1]), (1, 3, [1, 1, 1]), (None, 2, [None, None])],
)
def test_a_limit_is_shared_among_the_workers(limit: int | None, workers: int, shares: list[int | None]) -> None:
    upstream = UpstreamConfig(base_url="http://h", auth="none", max_concurrency=limit)
    config = Config(server=ServerConfig(workers=workers), upstreams={"up": upstream, "other": upstream})
    for name in ("up", "other"):
        found = [share_of(config, number).upstreams[name].max_concurrency for number in range(1, workers + 1)]
        assert found == shares
