"""The `sluice` command as a person meets it: what it prints, where, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import psutil
import pytest
from click.testing import CliRunner

from proxy import __version__, cli
from proxy.commands.common import importing
from tests.fakes.client import RecordingClient
from tests.fakes.commands import Child, command, environment

if TYPE_CHECKING:
    from pathlib import Path

_BROKEN = """\
server:
  port: 99999
  hots: 127.0.0.1
upstreams:
  up: {base_url: "http://127.0.0.1:1/v1", auth: none}
keys:
  - {id: team-a, secret: "${NOT_SET_ANYWHERE}"}
"""
_GOOD = """\
server: {port: 0}
ops: {port: 0}
upstreams:
  up: {base_url: "UPSTREAM", api_keys: [sk-upstream-secret-000000]}
models:
  sim-fast: {}
keys:
  - {id: team-a, secret: sk-team-a-secret-000000}
"""
_QUESTION = {"model": "sim-fast", "messages": [{"role": "user", "content": "Hello!"}]}


def _invoke(*words: str, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that does not stay."""
    absent = dict.fromkeys(("SLUICE_CONFIG", "SLUICE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"))
    result = CliRunner().invoke(cli.main, list(words), env={**absent, **env}, prog_name="sluice")
    return result.exit_code, result.stdout, result.stderr


def _port(url: str) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", url)
    assert found is not None, url
    return int(found[1])


def test_the_collector_rests_while_a_command_imports_and_no_longer() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("proxy.no_such_module")
    assert gc.isenabled()


async def _run_line(line: str, env: dict[str, str]) -> str:
    """Paste a line into a shell."""
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", line, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await shell.communicate()
    assert shell.returncode == 0, line
    return out.decode()


@pytest.mark.parametrize("name", ["", *cli.main.commands])
def test_help_of_every_command_is_readable(name: str) -> None:
    code, out, errors = _invoke(*name.split(), "--help")
    assert (code, errors) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in out.replace("[ARGS]...", "")  # nothing was cut off for want of room
    about = cli.main if not name else cli.main.commands[name]
    assert about.help
    options = [option for option in about.params if isinstance(option, click.Option)]
    assert all(option.help for option in options)


@pytest.mark.parametrize("name", ["", *cli.main.commands])
def test_an_unknown_option_or_command_is_wrong_usage(name: str) -> None:
    code, out, errors = _invoke(*name.split(), "--no-such-option")
    assert (code, out) == (2, "")
    assert "No such option '--no-such-option'" in errors
    assert _invoke("no-such-command")[0] == 2


async def test_python_m_proxy_is_the_command(tmp_path: Path) -> None:
    async with command("--version", env=environment(tmp_path)) as child:
        assert await child.ends() == 0
    assert child.out == f"sluice, version {__version__}\n"


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("proxy.cli", {"aiohttp", "openai", "sqlalchemy"}),
        ("proxy.serving", {"alembic", "openai", "opentelemetry", "proxy.simulator", "proxy.supervisor", "redis"}),
    ],
)
def test_a_command_loads_no_more_than_it_needs(module: str, spared: set[str]) -> None:
    code = f"import sys, {module}; sys.exit(' '.join({spared} & set(sys.modules)) or 0)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (loaded.returncode, loaded.stderr) == (0, "")


def test_check_config_names_every_mistake_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(_BROKEN)
    code, out, errors = _invoke("check-config", str(file))
    assert (code, out) == (2, "")
    *mistakes, summary = errors.splitlines()
    assert [re.sub(r"^.*broken\.yaml", "", mistake).split(": ")[:2] for mistake in mistakes] == [
        [":2", "server.port"],
        [":3", "server.hots"],
        [":7", "keys[0].secret"],
    ]
    assert "host" in mistakes[1]
    assert "NOT_SET_ANYWHERE" in mistakes[2]
    assert summary == f"{file}: 3 mistakes"


def test_check_config_prints_what_is_in_effect_without_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(_GOOD.replace("UPSTREAM", "https://api.example.com/v1"))
    for words, env in (([str(file)], {}), ([], {"SLUICE_CONFIG": str(file)}), (["--config", str(file)], {})):
        code, out, errors = _invoke("check-config", *words, **env)
        assert code == 0
        assert "https://api.example.com/v1" in out
        assert "max_request_bytes: 26214400" in out  # a default is in effect, too
        assert "team-a" in out
        assert "sk-" not in out + errors
        assert errors.endswith(f"{file}: in order\n")


def test_check_config_without_a_file_is_wrong_usage(tmp_path: Path) -> None:
    assert _invoke("check-config")[0] == 2
    code, _, errors = _invoke("check-config", str(tmp_path / "absent.yaml"))
    assert code == 2
    assert "absent.yaml: cannot be read" in errors


async def _first_answer(child: Child) -> tuple[str, str]:
    """Ask a proxy as soon as its banner is there: the curl line that it printed, and its key."""
    line = await child.errors_until("curl ")
    key = re.search(r"  key +(\S+)", child.errors)
    assert key is not None, child.errors
    client = await RecordingClient.connect(_port(line))
    answer = await client.ask("POST", "/v1/chat/completions", _QUESTION, key=key[1])
    await client.close()
    assert answer.status == 200
    return line, key[1]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_serve_without_a_configuration_streams_to_the_line_it_prints(tmp_path: Path, loop: str) -> None:
    env = environment(tmp_path, SLUICE_LOOP=loop)
    async with command("serve", "--port", "0", env=env) as child:
        line, key = await _first_answer(child)
        spent = psutil.Process(child.process.pid).cpu_times()
        assert spent.user + spent.system <= 2.5, "seconds of work to the first answer; what others take is not counted"
        streamed = await _run_line(line.replace('"sim"', '"sim-fast"'), env)
        assert await child.interrupted() == 0
    assert streamed.startswith("data: {")
    assert streamed.endswith("data: [DONE]\n\n")
    lines = [json.loads(line) for line in child.out.splitlines()]
    assert [line["event"] for line in lines] == ["exchange", "exchange", "draining"]
    assert key not in child.out
    assert "Hello!" not in child.out
    assert "simulator" in child.errors
    assert "Traceback" not in child.errors


async def test_serve_with_a_file_never_prints_its_keys(tmp_path: Path) -> None:
    async with command("simulate", "--port", "0", env=environment(tmp_path)) as upstream:
        url = re.search(r"http://\S+/v1", await upstream.out_until("The simulator listens on "))
        assert url is not None
        file = tmp_path / "sluice.yaml"
        file.write_text(_GOOD.replace("UPSTREAM", url[0]))
        env = environment(tmp_path, SLUICE_CONFIG=str(file))
        async with command("serve", env=env) as child:
            line = await child.errors_until("curl ")
            streamed = await _run_line(line, {**env, "SLUICE_API_KEY": "sk-team-a-secret-000000"})
            assert await child.interrupted() == 0
        assert await upstream.interrupted() == 0
    assert streamed.endswith("data: [DONE]\n\n")
    assert "SLUICE_API_KEY" in child.errors
    assert "sk-" not in child.out + child.errors


def test_serve_with_a_broken_file_says_what_check_config_says(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(_BROKEN)
    assert _invoke("serve", "--config", str(file)) == _invoke("check-config", str(file))


@pytest.mark.parametrize("name", ["serve", "simulate"])
async def test_an_address_that_is_taken_is_named(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with command(name, "--port", port, env=environment(tmp_path)) as child:
            assert await child.ends() == 1
    assert re.match(rf"sluice: .*127\.0\.0\.1.*{port}.*already in use", child.errors)
    assert "Traceback" not in child.errors


async def test_a_certificate_that_is_absent_is_named_by_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    text = _GOOD.replace("UPSTREAM", "http://127.0.0.1:1/v1")
    file.write_text(text.replace("{port: 0}", "{port: 0, tls: {certificate: no.pem, private_key: no.key}}", 1))
    async with command("serve", "--config", str(file), env=environment(tmp_path)) as child:
        assert await child.ends() == 1
    assert child.errors == "sluice: server.tls: No such file or directory\n"
    assert "Traceback" not in child.errors


async def test_closed_standard_streams_end_nothing(tmp_path: Path) -> None:
    """The first socket would have the number of one, and libuv aborts the process that closes it."""
    async with command("serve", "--port", "0", env=environment(tmp_path), closed=(0, 1)) as child:
        served = await child.errors_until("  API ")
        key = re.search(r"sk-sluice-\S+", await child.errors_until("  key "))
        assert key is not None
        client = await RecordingClient.connect(_port(served))
        assert (await client.ask("POST", "/v1/chat/completions", _QUESTION, key=key[0])).status == 200
        await client.close()
        child.process.terminate()
        assert await child.ends() == 0


async def test_a_closed_standard_input_has_no_message(tmp_path: Path) -> None:
    async with command("chat", "--key", "any", env=environment(tmp_path), closed=(0,)) as child:
        assert await child.ends() == 2
    assert child.errors.endswith("Error: the message is empty\n")


async def test_demo_shows_a_streamed_answer_and_goes_on_unless_told_to_stop(tmp_path: Path) -> None:
    """Both at once: the simulator types for three seconds, as fast as one reads."""
    env = environment(tmp_path)
    async with command("demo", "--port", "0", env=env) as stays, command("demo", "--once", env=env) as ends:
        assert await ends.ends() == 0
        await _first_answer(stays)
        assert await stays.interrupted() == 0
    for child in (stays, ends):
        assert "You, with the OpenAI SDK through http://127.0.0.1:" in child.out
        assert "Hello from the Sluice simulator." in child.out
        assert "Traceback" not in child.errors


async def test_simulate_answers_without_a_key(tmp_path: Path) -> None:
    async with command("simulate", "--port", "0", env=environment(tmp_path)) as child:
        client = await RecordingClient.connect(_port(await child.out_until("The simulator listens on ")))
        answer = await client.ask("POST", "/v1/chat/completions", _QUESTION, key=None)
        await client.close()
        child.process.terminate()
        assert await child.ends() == 0
    assert answer.json["choices"][0]["message"]["content"]
    assert "reset-after-<n>" in child.out
