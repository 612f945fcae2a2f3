"""SIGHUP: all of a new configuration at once, or none of it, and nobody under way notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from proxy.simulator.server import Simulator
from tests.fakes.client import RecordingClient
from tests.fakes.fleet import configuration, until_ready
from tests.fakes.redis import shared_redis
from tests.fakes.running import KEY
from tests.fakes.served import served
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.served import Served

CHAT = "/v1/chat/completions"
QUICK: dict[str, Any] = {"model": "sim-fast", "messages": [{"role": "user", "content": "hi"}]}
SLOW = {**QUICK, "model": "sim-40t-50ms", "stream": True}


class Scene:
    """A proxy, its file, and how to write it anew."""

    def __init__(self, proxy: Served, config: dict[str, Any], folder: Path) -> None:
        self.proxy = proxy
        self.config = config
        self._file = folder / "sluice.yaml"

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.proxy.lines if line["event"] == name]

    async def reload(self, outcome: str = "reloaded", **sections: Any) -> dict[str, Any]:
        """Write the file with other sections and signal; the line that tells of it."""
        before = len(self.events(outcome))
        self._file.write_text(json.dumps({**self.config, **sections}))
        self.proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: len(self.events(outcome)) > before, f"a line {outcome!r}", LONG_S)
        return self.events(outcome)[-1]

    async def status(self, body: dict[str, Any] = QUICK, key: str = KEY) -> int:
        async with await RecordingClient.connect(self.proxy.port) as client:
            return (await client.ask("POST", CHAT, body, key=key)).status


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    simulator = Simulator()
    await simulator.start()
    with contextlib.ExitStack() as stack:
        store = "memory://" if request.param == 1 else stack.enter_context(shared_redis())
        config = configuration(simulator.url, store, tmp_path, workers=request.param)
        async with served(config, tmp_path) as proxy:
            await until_ready(proxy)
            yield Scene(proxy, config, tmp_path)
    await simulator.close()


async def test_a_new_plan_holds_for_the_next_request_and_load_sees_no_error(scene: Scene) -> None:
    stopping = asyncio.Event()
    statuses: list[int] = []

    async def load() -> None:
        while not stopping.is_set():
            statuses.append(await scene.status())

    tasks = [asyncio.create_task(load()) for _ in range(4)]
    narrow = {"one": {"models": ["none-such"]}}
    for _ in range(3):
        seen = len(statuses)
        line = await scene.reload(
            plans=narrow, keys=[{"id": "team-a", "secret": KEY}, {"id": "new", "secret": "n" * 20, "plan": "one"}]
        )
        assert line["need_restart"] == []
        assert set(line["in_force"]) <= {"plans.one", "keys.new"}
        assert await scene.status(key="n" * 20) == 404, "a model that is not in its plan"
        await scene.reload()
        assert await scene.status(key="n" * 20) == 401, "the key is gone"
        await until(lambda seen=seen: len(statuses) > seen + 8, "load goes on", LONG_S)  # type: ignore[misc]
    stopping.set()
    await asyncio.gather(*tasks)
    assert set(statuses) == {200}


@pytest.mark.parametrize("scene", [2], indirect=True)
async def test_streams_under_way_end_as_they_began(scene: Scene) -> None:
    async with await RecordingClient.connect(scene.proxy.port) as client:
        client.send("POST", CHAT, SLOW)
        answer = await client.head()
        await client.piece(answer)
        # the upstream it comes from is gone from the file, and its key too
        gone = {"other": {"base_url": "http://127.0.0.1:9/v1", "auth": "none"}}
        line = await scene.reload(upstreams=gone, keys=[{"id": "else", "secret": "e" * 20}])
        assert set(line["in_force"]) == {"upstreams.up", "upstreams.other", "keys.team-a", "keys.else"}
        assert await scene.status() == 401
        body = b""
        while piece := await client.piece(answer):
            body += piece
        assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("scene", [2], indirect=True)
async def test_a_file_with_mistakes_changes_nothing_and_says_why(scene: Scene) -> None:
    line = await scene.reload("reload refused", plans={"one": {"request": ["1/day"]}}, keys=[])
    assert any("plans.one" in problem and "requests" in problem for problem in line["why"])
    assert await scene.status() == 200
    line = await scene.reload(
        "reload refused",
        upstreams={"up": {"base_url": "https://h/v1", "auth": "none", "tls": {"ca": "/does/not/exist.pem"}}},
    )
    assert "upstreams.up.tls" in line["why"][0]
    assert await scene.status() == 200


@pytest.mark.parametrize("scene", [1], indirect=True)
async def test_what_needs_a_restart_is_named_and_the_rest_is_in_force(scene: Scene) -> None:
    server = {**scene.config["server"], "port": 1, "write_stall": "7s"}
    line = await scene.reload(server=server, keys=[{"id": "else", "secret": "e" * 20}])
    assert line["need_restart"] == ["server.port"]
    assert set(line["in_force"]) == {"server.write_stall", "keys.team-a", "keys.else"}
    assert await scene.status(key="e" * 20) == 200


@pytest.mark.parametrize("scene", [2], indirect=True)
async def test_a_worker_that_dies_comes_back_with_the_new_configuration(scene: Scene) -> None:
    await scene.reload(keys=[{"id": "else", "secret": "e" * 20}])
    for worker in scene.proxy.workers.values():
        worker.kill()
    await until(lambda: len(scene.events("worker died")) == 2, "both are missed", LONG_S)
    await until_ready(scene.proxy)
    assert {await scene.status(key="e" * 20) for _ in range(10)} == {200}
    assert {await scene.status() for _ in range(10)} == {401}


@pytest.mark.parametrize("scene", [2], indirect=True)
async def test_a_worker_that_comes_later_runs_on_what_the_others_run_on(scene: Scene, tmp_path: Path) -> None:
    """The ledger's address needs a restart: one worker with another ledger would lose what it writes there."""
    other = {"url": f"sqlite:///{tmp_path / 'other.db'}"}
    for _ in range(2):
        line = await scene.reload(ledger=other)
        assert line["need_restart"] == ["ledger.url"], "as long as it is so"
    next(iter(scene.proxy.workers.values())).kill()
    await until(lambda: scene.events("worker died"), "it is missed", LONG_S)
    await until_ready(scene.proxy)
    assert {await scene.status() for _ in range(10)} == {200}
    assert not (tmp_path / "other.db").exists()
    assert (await scene.reload())["need_restart"] == []
