"""Reload over the admin API of real processes: what differs by name, what is wrong by line, with nothing changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.admin import TOKEN, Operator
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.fleet import configuration, until_ready
from tests.fakes.redis import shared_redis
from tests.fakes.served import served
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.served import Served

ADDED = "sk-added-key-0123456789"


async def status(proxy: Served, key: str) -> int:
    async with await RecordingClient.connect(proxy.port) as client:
        return (await client.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []}, key=key)).status


@pytest.mark.parametrize("workers", [1, 2], ids=["alone", "two workers"])
async def test_the_file_is_taken_over_or_refused_as_a_whole(workers: int, tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    async with AnsweringUpstream() as upstream, contextlib.AsyncExitStack() as stack:
        store = "memory://" if workers == 1 else stack.enter_context(shared_redis())
        config = configuration(upstream.url, store, tmp_path, workers=workers)
        proxy = await stack.enter_async_context(served(config, tmp_path))
        await until_ready(proxy)
        operator = Operator(proxy)
        assert await operator.does("POST", "/admin/reload") == {"in_force": [], "need_restart": []}

        keys = [*config["keys"], {"id": "added", "secret": ADDED}]
        changed: dict[str, Any] = {**config, "keys": keys, "ops": {"port": 0, "admin_token": "another-token-0123"}}
        await asyncio.to_thread(file.write_text, json.dumps(changed))
        told = await operator.does("POST", "/admin/reload")
        assert told == {"in_force": ["keys.added"], "need_restart": ["ops.admin_token"]}

        async def is_known() -> bool:
            return {await status(proxy, ADDED) for _ in range(5)} == {200}

        await until_asked(is_known, "the key is good on every worker", LONG_S)
        assert [key["id"] for key in (await operator.get("/admin/keys"))["keys"]] == ["team-a", "added"]
        await operator.refused(409, "conflict", "POST", "/admin/keys", {"id": "added"})

        await asyncio.to_thread(file.write_text, "upstreams: {}\nkeys:\n- {id: a b, secret: s}\nqueue: 5\n")
        refusal = await operator.refused(422, "invalid_configuration", "POST", "/admin/reload")
        assert [(problem.get("path"), problem["line"]) for problem in refusal["problems"]] == [
            ("upstreams", 1),
            ("keys[0].id", 3),
            ("queue", 4),
        ]
        assert await status(proxy, ADDED) == 200
        await until(lambda: len(operator.audit) == 4, "a line for each change", LONG_S)
        assert [(line["action"], line["outcome"]) for line in operator.audit] == [
            ("reload", "done"),
            ("reload", "done"),
            ("keys.create", "conflict"),
            ("reload", "invalid_configuration"),
        ]
    for hidden in (ADDED, TOKEN, "another-token-0123"):
        assert hidden not in (proxy.out + proxy.err).decode()
