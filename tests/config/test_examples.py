"""Every worked configuration in deploy/examples is in order, shows no secret, and says what it is for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from proxy import cli
from tests.fakes.examples import EXAMPLES, VARIABLE, environment, load_example

if TYPE_CHECKING:
    from pathlib import Path

_COMMENT = re.compile(r"(?:^|\s)#.*")
# issue 5 names them; Azure has two forms
_KINDS = {
    "openai",
    "azure-classic",
    "azure-v1",
    "openrouter",
    "anthropic",
    "gemini",
    "groq",
    "mistral",
    "deepseek",
    "vllm",
    "llama.cpp",
    "ollama",
    "generalcompute",
}

every_example = pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)


def test_there_is_one_for_each_kind() -> None:
    assert {file.stem for file in EXAMPLES} == _KINDS


@every_example
def test_check_config_finds_it_in_order(file: Path) -> None:
    """Nothing is wrong, nothing is unwise, and what is printed holds no secret."""
    env = environment(file)
    result = CliRunner().invoke(cli.main, ["check-config", str(file)], env=env, prog_name="sluice")
    assert result.exit_code == 0, result.stderr
    *warnings, verdict = result.stderr.splitlines()
    assert verdict == f"{file}: in order"
    assert warnings == []
    secrets = [value for name, value in env.items() if "KEY" in name]
    assert secrets
    assert not any(secret in result.stdout + result.stderr for secret in secrets)


@every_example
def test_secrets_come_from_the_environment_alone(file: Path) -> None:
    """Without it the file does not load; no credential stands in it."""
    code = _COMMENT.sub("", file.read_text())
    names = {name for name in environment(file) if f"${{{name}}}" in code}
    assert "TEAM_A_KEY" in names
    result = CliRunner().invoke(cli.main, ["check-config", str(file)], env=dict.fromkeys(environment(file)))
    assert result.exit_code == 2
    assert all(f"environment variable {name}, which is not set" in result.stderr for name in names)
    for upstream in load_example(file).upstreams.values():
        assert all(key.reveal() in environment(file).values() for key in upstream.api_keys)


@every_example
def test_its_head_names_what_must_be_exported_and_the_command(file: Path) -> None:
    text = file.read_text()
    head = text[: text.index("upstreams:")]
    required = {match[1] for match in VARIABLE.finditer(_COMMENT.sub("", text)) if match[2] is None}
    assert all(f"{name}=" in head for name in required)
    assert f"sluice serve --config deploy/examples/{file.name}\n" in head
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 60


@every_example
def test_each_of_its_settings_is_reached(file: Path) -> None:
    """No upstream without a route, no plan without a key: what stands in an example does something."""
    config = load_example(file)
    routed = {route.upstream for model in config.models.values() for route in model.routes}
    assert routed in (set(), set(config.upstreams))
    assert routed or len(config.upstreams) == 1
    assert {key.plan for key in config.keys} == set(config.plans)
