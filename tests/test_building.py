"""What of a configuration decides what a worker loads, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from proxy.building import encodings_of
from proxy.config.settings import Config, ModelConfig
from proxy.config.upstreams import RouteConfig, TimeoutsConfig, UpstreamTlsConfig
from proxy.core.tokens import CL100K, O200K
from tests.fakes.running import running, upstream_config

if TYPE_CHECKING:
    import ssl

    from proxy.phases.upstreams import Upstream


@pytest.mark.parametrize(
    ("names", "encodings"),
    [
        ([], {O200K, CL100K}),  # any model may come
        (["gpt-4o", "llama-*"], {O200K}),
        (["gpt-4", "text-embedding-3-small"], {CL100K}),
        (["gpt-4", "o3"], {O200K, CL100K}),
        (["*"], {O200K, CL100K}),
    ],
)
def test_only_tables_of_models_that_may_come_are_needed(names: list[str], encodings: set[str]) -> None:
    assert encodings_of(Config(models={name: ModelConfig() for name in names})) == encodings


@pytest.mark.parametrize("encoding", [O200K, CL100K])
def test_the_encoding_that_is_configured_is_needed(encoding: Literal["o200k_base", "cl100k_base"]) -> None:
    assert encodings_of(Config(models={"*": ModelConfig(encoding=encoding)})) == {encoding}


def test_the_name_at_the_first_choice_says_what_is_needed() -> None:
    """As it says what is counted with."""
    routes = (
        RouteConfig(model="gpt-4o", priority=1),
        RouteConfig(model="gpt-4", priority=0),
        RouteConfig(model="o3", weight=0.0),
    )
    assert encodings_of(Config(models={"fast": ModelConfig(routes=routes)})) == {CL100K}


def context_of(upstream: Upstream) -> ssl.SSLContext | None:
    return upstream.pool.origin.tls


async def test_the_authorities_are_read_once_for_all_upstreams_and_anew_by_a_reload() -> None:
    careless = UpstreamTlsConfig(verify=False)
    named = {"a": UpstreamTlsConfig(), "b": UpstreamTlsConfig(), "c": careless}
    upstreams = {name: upstream_config(f"https://{name}.test/v1", tls=tls) for name, tls in named.items()}
    async with running(upstreams) as proxy:
        app = proxy.worker.app
        a, b, c = map(context_of, app.upstreams.values())
        assert a is not None
        assert a is b
        assert c not in (a, None)
        later = msgspec.structs.replace(upstreams["a"], timeouts=TimeoutsConfig(idle=1.0))
        made = await app.prepare(msgspec.structs.replace(app.config, upstreams={**upstreams, "a": later}))
        assert context_of(made.upstreams["a"]) not in (a, c, None)
        assert context_of(made.upstreams["b"]) is a
