"""The ledger of real processes: starts without one, a full disk, a stop meanwhile, several workers, old rows."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import LedgerConfig
from proxy.stores.database import open_database
from tests.fakes import running as fakes
from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.commands import command, environment
from tests.fakes.ledger_rows import insert, settled
from tests.fakes.outage_clients import Clients, finish, id_of, is_ready, readiness, written
from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import KEY, fresh_ledger, running
from tests.fakes.served import served, start
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.client import Answer
    from tests.fakes.served import Served

MODEL = "gpt-4o-mini"
# of a stop that cannot write: 3 s for exchanges that are being settled, 5 s for the rows, and a busy machine
STOPPED_WITHIN_S = 40.0


def configuration(url: str, upstream_port: int = 1, **ledger: str) -> dict[str, Any]:
    return {
        "server": {"port": 0},
        "ops": {"port": 0},
        "upstreams": {"up": {"base_url": f"http://127.0.0.1:{upstream_port}/v1", "auth": "none", "usage": "as-asked"}},
        "models": {MODEL: {}},
        "keys": [{"id": "team-a", "secret": KEY}],
        "ledger": {"url": url, **ledger},
        "shutdown": {"notice": "0s", "drain": "10s"},
    }


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: the processes make its tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        with shared_postgres() as server_url, fresh_database(server_url) as url:
            yield url


@pytest.fixture
def file_url() -> Iterator[str]:
    with fresh_ledger() as url:
        yield url


def limit_file_size(proxy: Served, most_bytes: int) -> None:
    """Let no file of the process grow beyond this: its disk is full, as far as it can tell."""
    resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


async def test_a_full_disk_and_then_a_stop(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with RawUpstream() as upstream:
        async with (
            served(configuration(url, upstream.port), tmp_path) as proxy,
            Clients(upstream, proxy) as clients,
        ):
            running = [await clients.streaming() for _ in range(3)]
            limit_file_size(proxy, 0)
            late = await clients.refused_after_the_upstream_answered()
            await clients.refused_at_once()
            assert await readiness(proxy.ops_port) == (503, ["ledger: OperationalError: disk I/O error"])
            await finish(*running[0])
            limit_file_size(proxy, resource.RLIM_INFINITY)
            await until_asked(lambda: is_ready(proxy.ops_port), "there is room again", LONG_S)
            running.append(await clients.streaming())
            limit_file_size(proxy, 0)
            proxy.process.send_signal(signal.SIGTERM)
            for stream in running[1:]:
                await finish(*stream)
            began_s = time.monotonic()
            assert await proxy.exit_code(LONG_S) == 0
            assert time.monotonic() - began_s < STOPPED_WITHIN_S
    [lost] = [line for line in proxy.lines if line["event"] == "rows of the ledger are lost"]
    assert (lost["level"], lost["count"]) == ("error", 3)
    found = written(url)
    assert set(found) == {id_of(late), *(id_of(answer) for _, _, answer in running)}
    assert found[id_of(late)]["outcome"] == "store_unavailable"
    assert found[id_of(running[0][2])]["outcome"] == "ok"
    # whose settlement is lost: their rows are open, for the next worker to close and charge as reserved
    assert [found[id_of(answer)]["ended_ms"] for _, _, answer in running[1:]] == [None] * 3
    told = {line["id"]: line["outcome"] for line in proxy.exchanges}
    assert [told[id_of(answer)] for _, _, answer in running] == ["ok"] * 4


def ledgers_that_cannot_be_opened(folder: Path) -> dict[str, tuple[str, str]]:
    """URLs, and what is said of each; `{}` stands for the URL without its password."""
    (folder / "is-a-folder.db").mkdir()
    (folder / "is-no-database.db").write_bytes(b"This is a text about something else.\n" * 50)
    missing, a_folder, no_database = (
        f"sqlite:///{folder / name}" for name in ("missing/ledger.db", "is-a-folder.db", "is-no-database.db")
    )
    found = {
        "missing folder": (missing, "No such file or directory"),
        "a folder": (a_folder, "Is a directory"),
        "no database": (no_database, "file is not a database"),
        "no server": (f"postgresql://sluice:hunter2@/ledger?host={folder}", "connection to server on socket"),
    }
    if os.geteuid() != 0:  # whom no mode keeps out
        (folder / "read-only.db").touch(mode=0o400)
        found["no permission"] = (f"sqlite:///{folder / 'read-only.db'}", "Permission denied")
    return found


async def test_a_start_without_a_ledger_says_what_and_where(tmp_path: Path) -> None:
    cases = ledgers_that_cannot_be_opened(tmp_path)
    folders = {name: tmp_path / f"case-{number}" for number, name in enumerate(cases)}
    for folder in folders.values():
        folder.mkdir()
    proxies = {name: await start(configuration(url), folders[name]) for name, (url, _) in cases.items()}
    codes = await asyncio.gather(*(proxy.exit_code(LONG_S) for proxy in proxies.values()))
    said = {name: proxy.err.decode() for name, proxy in proxies.items()}
    assert set(codes) == {1}, said
    for name, (url, reason) in cases.items():
        assert said[name].count("\n") == 1, said[name]
        assert said[name].startswith("sluice: the ledger "), said[name]
        assert str(tmp_path) in said[name], said[name]
        assert reason in said[name], said[name]
        assert "hunter2" not in said[name], said[name]
        assert proxies[name].lines == [], url


async def ask_again_and_again(port: int, count: int) -> list[Answer]:
    """One client's questions, one after the other, streamed and not."""
    async with await RecordingClient.connect(port) as client:
        bodies = ({"model": MODEL, "messages": [], "stream": number % 2 == 0} for number in range(count))
        return [await client.ask("POST", "/v1/chat/completions", body) for body in bodies]


async def test_two_workers_on_one_ledger(empty_url: str, tmp_path: Path) -> None:
    """They make its tables at the same time, write at the same time, and each leaves in order."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with AnsweringUpstream() as upstream, contextlib.AsyncExitStack() as stack:
        config = configuration(empty_url, upstream.port)
        proxies = [await start(config, folder) for folder in folders]
        for proxy in proxies:
            stack.push_async_callback(_end, proxy)
        await asyncio.gather(*(proxy.listening() for proxy in proxies))
        asking = [ask_again_and_again(proxy.port, 10) for proxy in proxies for _ in range(8)]
        answers = [answer for answered in await asyncio.gather(*asking) for answer in answered]
        for proxy in proxies:
            proxy.process.send_signal(signal.SIGTERM)
        assert [await proxy.exit_code(LONG_S) for proxy in proxies] == [0, 0]
    assert {(answer.status, answer.whole) for answer in answers} == {(200, True)}
    found = written(empty_url)
    assert set(found) == {id_of(answer) for answer in answers}
    assert len(found) == 160
    assert {(row["outcome"], row["ended_ms"] is None) for row in found.values()} == {("ok", False)}
    assert len({row["worker"] for row in found.values()}) == 2
    trouble = [line for proxy in proxies for line in proxy.lines if line["level"] in ("warning", "error")]
    assert trouble == []


async def _end(proxy: Served) -> None:
    if proxy.process.returncode is None:
        proxy.process.kill()
    await proxy.exit_code()


async def test_rows_that_are_too_old_are_deleted_while_it_runs(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "LedgerConfig", functools.partial(LedgerConfig, keep=86_400.0))
    now_ms = time.time_ns() // 1_000_000

    def fill() -> None:
        engine = open_database(file_url)
        old = [settled(id=f"old-{number}", started_ms=now_ms - 90_000_000 - number) for number in range(450)]
        young = [settled(id=f"young-{number}", started_ms=now_ms - 80_000_000) for number in range(5)]
        insert(engine, *old, *young)
        engine.dispose()

    await asyncio.to_thread(fill)
    async with AnsweringUpstream() as upstream, running(upstream.url, ledger=file_url) as proxy:
        answers = await ask_again_and_again(proxy.port, 2)
        kept = {f"young-{number}" for number in range(5)} | {id_of(answer) for answer in answers}
        await until(lambda: set(written(file_url)) == kept, "the old ones are gone", LONG_S)


async def test_another_program_at_the_ledger_takes_nothing_from_it(file_url: str, tmp_path: Path) -> None:
    """SQLite's last user clears the log away: an operator's command must see that it is not the last."""
    (tmp_path / "sluice.yaml").write_text(json.dumps(configuration(file_url)))
    said = []
    async with AnsweringUpstream() as upstream, running(upstream.url, ledger=file_url) as proxy:
        for words in (("keys", "create", "alice"), ("usage", "--format", "json")):
            await ask_again_and_again(proxy.port, 1)
            await until(lambda: proxy.worker.app.ledger.waiting == 0, "it is written")
            said.append(await _said(tmp_path, *words))
    assert json.loads(said[-1])["total"]["requests"] == 2
    assert len(written(file_url)) == 2


async def _said(folder: Path, *words: str) -> str:
    """What a command printed."""
    async with command(*words, "--config", str(folder / "sluice.yaml"), env=environment(folder)) as child:
        assert await child.ends() == 0, child.errors
    return child.out
