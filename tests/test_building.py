"""What of a configuration decides what a worker loads."""

from __future__ import annotations

from typing import Literal

import pytest

from proxy.building import encodings_of
from proxy.config.settings import Config, ModelConfig
from proxy.config.upstreams import RouteConfig
from proxy.core.tokens import CL100K, O200K


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
