"""Usage over the admin API: what `sluice usage` says, in the same numbers."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import KeyConfig
from proxy.config.values import Secret
from tests.fakes.admin import operated
from tests.fakes.client import RecordingClient
from tests.fakes.commands import command, environment
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.refusals import GOOD
from tests.fakes.running import KEY, fresh_ledger
from tests.fakes.waiting import until_asked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.admin import Operator

OTHER = "sk-other-key-0123456789"
KEYS = (KeyConfig(id="team-a", secret=Secret(KEY)), KeyConfig(id="team-b", secret=Secret(OTHER)))


async def until_settled(operator: Operator, count: int) -> None:
    async def is_so() -> bool:
        return bool((await operator.get("/admin/usage"))["total"]["requests"] == count)

    await until_asked(is_so, f"{count} exchanges in the ledger")


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            yield stack.enter_context(fresh_ledger())
        else:
            yield stack.enter_context(fresh_database(stack.enter_context(shared_postgres())))


async def test_usage_is_what_the_command_says(ledger: str, tmp_path: Path) -> None:
    async with operated(ledger=ledger, keys=KEYS) as (_, proxy, operator):
        async with await RecordingClient.connect(proxy.port) as client:
            for key, model in ((KEY, "gpt-4o"), (KEY, "gpt-4o-mini"), (OTHER, "gpt-4o")):
                body = {**GOOD, "model": model}
                assert (await client.ask("POST", "/v1/chat/completions", body, key=key)).status == 200
        await until_settled(operator, 3)
        until = "2199-01-01"
        told = await operator.get(f"/admin/usage?by=key&by=model&since=1d&until={until}")
        assert [(row["key"], row["model"], row["requests"]) for row in told["rows"]] == [
            ("team-a", "gpt-4o", 1),
            ("team-a", "gpt-4o-mini", 1),
            ("team-b", "gpt-4o", 1),
        ]
        config = {"upstreams": {"up": {"base_url": "http://h/v1", "auth": "none"}}, "ledger": {"url": ledger}}
        (tmp_path / "sluice.yaml").write_text(json.dumps(config))
        words = ("--by", "key", "--by", "model", "--since", "1d", "--until", until, "--format", "json")
        file = ("--config", str(tmp_path / "sluice.yaml"))
        async with command("usage", *words, *file, env=environment(tmp_path)) as child:
            assert await child.ends() == 0, child.errors
        assert json.loads(child.out) == told
        for query, rows in (("key=team-a", 1), ("key=nobody", 0), ("by=model&model=gpt-4o", 1), ("by=day", 1)):
            assert len((await operator.get(f"/admin/usage?{query}"))["rows"]) == rows
        assert [row["key"] for row in (await operator.get("/admin/usage"))["rows"]] == ["team-a", "team-b"]
        assert operator.audit == []
        made = await operator.does("POST", "/admin/keys", {"id": "b", "limits": {"tokens": ["1/day"]}}, status=201)
        assert (await operator.does("PATCH", "/admin/keys/b", {"limits": None}))["limits"] is None
        assert await operator.does("DELETE", "/admin/keys/b") == {"id": made["id"], "state": "revoked"}


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("by=colour", "query.by[0]"),
        ("since=yesterday", "query.since"),
        ("since=2026", "query.since"),
        ("until=never", "query.until"),
        ("since=1h&until=2h", "query.since"),
        ("key=%00", "query.key"),
        ("key=" + "a" * 300, "query.key"),
        ("model=a%0Ab", "query.model"),
        ("format=csv", "query"),
        ("&".join(["by=key"] * 7), "query.by"),
    ],
)
async def test_what_cannot_be_reported_says_where(query: str, path: str) -> None:
    async with operated() as (_, _, operator):
        refusal: dict[str, Any] = await operator.refused(400, "invalid_request", "GET", f"/admin/usage?{query}")
        assert refusal["path"] == path
