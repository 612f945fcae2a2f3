"""What the banner of `serve` tells is true: the request that it suggests can be made."""

from __future__ import annotations

import pytest

from proxy.config.settings import ModelConfig
from proxy.serving import _served
from tests.fakes.running import KEY, running, upstream_config
from tests.fakes.stage import stage


@pytest.mark.parametrize(
    ("models", "suggested"),
    [
        ([], "gpt-4o-mini"),
        (["*"], "gpt-4o-mini"),
        (["llama*", "gpt-4?-mini"], "gpt-4o-mini"),
        (["gpt-*", "mine"], "mine"),
        (["a[b]"], "a[b]"),
    ],
)
async def test_the_suggested_model_is_one_that_is_served(models: list[str], suggested: str) -> None:
    async with stage(models={name: ModelConfig() for name in models}) as (upstream, proxy, client):
        model = _served(proxy.worker, KEY).model
        assert model == suggested
        answer = await client.ask("POST", "/v1/chat/completions", {"model": model, "messages": []})
        assert answer.status == 200
        assert upstream.bodies[0]["model"] == suggested


async def test_before_the_simulator_its_own_model_is_suggested_where_a_pattern_serves_it() -> None:
    upstreams = {"simulator": upstream_config("http://127.0.0.1:1/v1", auth="none")}
    for models, suggested in (([], "sim"), (["s*"], "sim"), (["gpt-*"], "MODEL (gpt-*)")):
        async with running(upstreams, models={name: ModelConfig() for name in models}) as proxy:
            assert _served(proxy.worker, KEY).model == suggested


async def test_where_only_the_upstream_knows_the_names_the_line_has_a_gap_to_fill() -> None:
    """A guess at a name would be refused by the upstream in words that do not help; the gap is refused by us."""
    async with stage(models={"llama*": ModelConfig(), "qwen-?b": ModelConfig()}) as (upstream, proxy, client):
        served = _served(proxy.worker, KEY)
        assert served.model == "MODEL (llama*, qwen-?b)"
        assert '"model": "MODEL (llama*, qwen-?b)"' in served.curl()
        answer = await client.ask("POST", "/v1/chat/completions", {"model": served.model, "messages": []})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert upstream.requests == []
