"""Keys made, rotated and revoked by the real commands while proxies run, and what each of those keys may do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import PlanConfig
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.commands import command, environment
from tests.fakes.outage_clients import id_of, written
from tests.fakes.outages import hasten, new_database
from tests.fakes.postgres import PostgresServer, running_postgres
from tests.fakes.running import KEY, fresh_ledger, running
from tests.fakes.waiting import until, until_asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.running import Running

HOUR_S = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with running_postgres() as own:
        yield own


@pytest.fixture
def file_url() -> Iterator[str]:
    with fresh_ledger() as found:
        yield found


@dataclass
class Desk:
    """Where an operator types `sluice keys`, with the configuration of the proxies."""

    folder: Path

    @classmethod
    def at(cls, folder: Path, url: str, *keys: dict[str, str]) -> Desk:
        config = {
            "upstreams": {"up": {"base_url": "http://127.0.0.1:1/v1", "auth": "none"}},
            "plans": {"small": {"models": ["gpt-4o-mini"]}},
            "keys": [{"id": "team-a", "secret": KEY}] if not keys else list(keys),
            "ledger": {"url": url},
        }
        (folder / "sluice.yaml").write_text(json.dumps(config))
        return cls(folder)

    async def keys(self, *words: str, code: int = 0) -> str:
        """Run it; what it printed, which is a secret or nothing. With a `code` of failure, what it complained of."""
        config = str(self.folder / "sluice.yaml")
        async with command("keys", *words, "--config", config, env=environment(self.folder)) as child:
            assert await child.ends() == code, child.errors
        return child.errors if code else child.out.strip()


async def ask(proxy: Running, secret: str, model: str = "gpt-4o-mini", path: str = "/v1/chat/completions") -> Answer:
    async with await RecordingClient.connect(proxy.port) as client:
        return await client.ask("POST", path, {"model": model, "messages": []}, key=secret)


async def status(proxy: Running, secret: str) -> int:
    return (await ask(proxy, secret)).status


async def becomes(expected: int, secret: str, *proxies: Running) -> None:
    """Wait until every proxy answers so to whoever holds the secret."""

    async def all_do() -> bool:
        return {await status(proxy, secret) for proxy in proxies} == {expected}

    await until_asked(all_do, f"{expected} on every proxy")


def move_clock(proxy: Running, seconds: float) -> None:
    """What the proxy takes for the time of day when it looks at keys."""
    proxy.worker.app.pipeline._clock = lambda: time.time() + seconds


@contextlib.asynccontextmanager
async def proxies(url: str, count: int) -> AsyncIterator[list[Running]]:
    """So many proxies that share a ledger, before an upstream that answers."""
    async with AnsweringUpstream() as upstream, contextlib.AsyncExitStack() as stack:
        settings: dict[str, Any] = {
            "ledger": url,
            "plans": {"small": PlanConfig(models=("gpt-4o-mini",))},
            "server": {"auth_failures": None},  # a key that is waited for fails until it is there
        }
        yield [await stack.enter_async_context(running(upstream.url, **settings)) for _ in range(count)]


async def test_the_life_of_a_key(file_url: str, tmp_path: Path) -> None:
    async with proxies(file_url, 2) as both:
        first, second = both
        desk = Desk.at(tmp_path, file_url)
        made = await desk.keys("create", "alice", "--plan", "small")
        await becomes(200, made, *both)
        answer = await ask(first, made)
        refused = await ask(first, made, model="gpt-4o")
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        assert (await ask(first, made, path="/v1/files")).status == 403

        rotated = await desk.keys("rotate", "alice", "--grace", "1h")
        await becomes(200, rotated, *both)
        assert [await status(proxy, made) for proxy in both] == [200, 200]
        move_clock(first, HOUR_S + 1)
        assert [await status(proxy, made) for proxy in both] == [401, 200]
        assert [await status(proxy, rotated) for proxy in both] == [200, 200]

        await desk.keys("revoke", "alice")
        await becomes(401, rotated, *both)
        assert await status(second, made) == 401  # the grace of a rotation ends with its key
        assert {await status(proxy, KEY) for proxy in both} == {200}
        lines = {line["id"]: line for proxy in both for line in proxy.exchanges}
        text = first.log_text + second.log_text
    assert lines[id_of(answer)]["key_id"] == "alice"
    assert written(file_url)[id_of(answer)]["key_id"] == "alice"
    assert made not in text
    assert rotated not in text


async def test_a_key_that_expires_and_a_secret_that_leaked(file_url: str, tmp_path: Path) -> None:
    async with proxies(file_url, 1) as [proxy]:
        desk = Desk.at(tmp_path, file_url)
        leaked = await desk.keys("create", "bob", "--expires", "1h")
        await becomes(200, leaked, proxy)
        safe = await desk.keys("rotate", "bob", "--grace", "0")
        await becomes(200, safe, proxy)
        assert await status(proxy, leaked) == 401
        move_clock(proxy, HOUR_S + 60)
        assert await status(proxy, safe) == 401


async def test_a_key_of_the_file_cannot_be_shadowed(file_url: str, tmp_path: Path) -> None:
    """Not by the command, which sees the file, and not by one with another file, which does not."""
    async with proxies(file_url, 1) as [proxy]:
        complaint = await Desk.at(tmp_path, file_url).keys("create", "team-a", code=2)
        assert complaint == "sluice: the configuration has a key team-a already\n"
        elsewhere = Desk.at(tmp_path, file_url, {"id": "somebody", "secret": "sk-somebody-0123456789"})
        shadow = await elsewhere.keys("create", "team-a")
        await until(lambda: _refusals(proxy), "the proxy has read it")
        assert await status(proxy, shadow) == 401
        assert await status(proxy, KEY) == 200
    assert [(line["reason"], line["ids"]) for line in _refusals(proxy)] == [("named_in_file", ["team-a"])]


def _refusals(proxy: Running) -> list[dict[str, Any]]:
    return [line for line in proxy.lines if line["event"] == "keys_refused"]


async def test_keys_in_postgres_stay_as_they_were_while_it_is_away(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had access is told that the ledger is away, nobody that his key is wrong."""
    hasten(monkeypatch)
    url = new_database(server)
    async with proxies(url, 1) as [proxy]:
        desk = Desk.at(tmp_path, url)
        secret = await desk.keys("create", "dora")
        await becomes(200, secret, proxy)
        await asyncio.to_thread(server.stop)
        await until(lambda: _said(proxy, "keys_stale"), "the keys could not be read")
        assert await status(proxy, secret) == 503
        assert await status(proxy, KEY) == 503
        assert await status(proxy, "sk-nobody-0123456789") == 401
        await asyncio.to_thread(server.start)
        await becomes(200, secret, proxy)
        await until(lambda: _said(proxy, "keys_stale_over"), "they are read again")
        await desk.keys("revoke", "dora")
        await becomes(401, secret, proxy)


def _said(proxy: Running, event: str) -> bool:
    return any(line["event"] == event for line in proxy.lines)
