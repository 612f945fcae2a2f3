"""`sluice chat` in a shell, in a pipe and in a terminal, before a proxy that runs in this test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from proxy import cli
from proxy.simulator.server import Simulator
from tests.fakes.commands import Child, command, environment, in_terminal
from tests.fakes.running import KEY, running
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.running import Running


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulator = Simulator()
    await simulator.start()
    yield simulator
    await simulator.close()


@pytest.fixture
async def sluice(simulator: Simulator) -> AsyncIterator[Running]:
    async with running(simulator.url) as proxy:
        yield proxy


@pytest.fixture
def env(sluice: Running, tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path, SLUICE_BASE_URL=sluice.url, SLUICE_API_KEY=KEY)


async def _chat(*words: str, env: dict[str, str], typed: str | None = None) -> tuple[int, Child]:
    async with command("chat", *words, env=env, has_input=typed is not None) as child:
        return await child.ends(typed), child


async def test_a_message_gets_one_answer(env: dict[str, str]) -> None:
    code, child = await _chat("Hello!", "--model", "sim-fast", env=env)
    assert (code, child.errors) == (0, "")
    assert child.out.startswith("Hello from the Sluice simulator.")
    assert child.out.endswith("\n")


async def test_a_pipe_gets_one_answer_to_all_of_it(env: dict[str, str], sluice: Running) -> None:
    code, child = await _chat("--model", "sim-fast", env=env, typed="Two lines\nmake one question.\n")
    assert (code, child.errors) == (0, "")
    assert child.out.startswith("Hello from the Sluice simulator.")
    assert (await sluice.exchange())["outcome"] == "ok"
    assert len(sluice.exchanges) == 1


async def test_a_failure_is_told_in_one_line(env: dict[str, str], simulator: Simulator) -> None:
    code, wrong = await _chat("Hello!", env={**env, "SLUICE_API_KEY": "sk-wrong-key-0000"})
    assert (code, wrong.out, wrong.errors) == (1, "", "sluice: 401: Incorrect API key provided.\n")
    code, broken = await _chat("Hello!", "--model", "sim-fast-stop-after-4", env=env)
    assert code == 1
    assert broken.out.startswith("Hello")
    assert broken.errors == "sluice: The upstream ended the stream before the answer was finished.\n"


async def test_a_proxy_that_is_not_there_is_named(tmp_path: Path) -> None:
    simulator = Simulator()
    await simulator.start()
    url = simulator.url
    await simulator.close()
    code, child = await _chat("Hello!", env=environment(tmp_path, SLUICE_BASE_URL=url, SLUICE_API_KEY=KEY))
    assert code == 1
    assert child.errors == f"sluice: cannot reach {url}/: is `sluice serve` running there?\n"


def test_no_key_and_no_message_are_wrong_usage() -> None:
    absent = dict.fromkeys(("SLUICE_API_KEY", "OPENAI_API_KEY"))
    no_key = CliRunner().invoke(cli.main, ["chat", "Hello!"], env=absent)
    assert no_key.exit_code == 2
    assert "SLUICE_API_KEY" in no_key.stderr
    no_message = CliRunner().invoke(cli.main, ["chat", "--key", "k"], input="\n")
    assert no_message.exit_code == 2
    assert "the message is empty" in no_message.stderr


async def test_ctrl_c_stops_the_answer_and_the_upstream_and_the_chat_goes_on(
    env: dict[str, str], simulator: Simulator, sluice: Running
) -> None:
    async with in_terminal("chat", "--model", "sim-5ms-100000t", env=env) as (terminal, process):
        await terminal.shows("> ")
        terminal.type("Hello!\n")
        await terminal.shows("Hello from the Sluice simulator.")
        terminal.type("\x03")
        await terminal.shows("[stopped]")
        await until(lambda: simulator.stats.aborted == 1, "the upstream's request aborted")
        await terminal.shows("> ")
        terminal.type("Once more!\n")
        await terminal.shows("Hello from the Sluice simulator.")
        terminal.type("\x03")
        await terminal.shows("> ")
        terminal.type("\x04")
        assert await process.wait() == 0
    assert (await sluice.exchange(2))["aborted_by"] == "client"


async def test_ctrl_c_ends_a_single_answer_as_a_failure(env: dict[str, str], simulator: Simulator) -> None:
    async with in_terminal("chat", "Hello!", "--model", "sim-5ms-100000t", env=env) as (terminal, process):
        await terminal.shows("Hello from the Sluice simulator.")
        terminal.type("\x03")
        await terminal.shows("sluice: stopped")
        assert await process.wait() == 1
    await until(lambda: simulator.stats.aborted == 1, "the upstream's request aborted")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--base-url", "127.0.0.1:18080"), "must begin with http:// or https://"),
        (("--base-url", "http://127.0.0.1:1808x/v1"), "is no URL"),
        (("--base-url", "ftp://x"), "must begin with http:// or https://"),
        (("--key", "clé"), "no HTTP header takes"),
    ],
)
def test_what_cannot_work_is_said_at_once(words: tuple[str, ...], complaint: str) -> None:
    result = CliRunner().invoke(cli.main, ["chat", "--key", "k", *words, "hi"])
    assert result.exit_code == 2
    assert complaint in result.output
    assert "Traceback" not in result.output
