"""The JSON Schema, the example and the masked dump agree with the structs and with what the loader accepts."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # the package has no types
import pytest
import yaml

from proxy.config.file import load
from proxy.config.schema import effective, json_schema
from tests.fakes.config_files import UPSTREAM, load_text, problems_of

DEPLOY = Path(__file__).parents[2] / "deploy"
ENVIRON = {"OPENAI_API_KEY": "sk-hush", "TEAM_A_KEY": "hush-0123456789abc", "TEAM_B_KEY_SHA256": "a1" * 32}


class _EditorLoader(yaml.SafeLoader):
    """YAML as editors read it for JSON Schema: times stay text."""


_EditorLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def schema_accepts(text: str) -> bool:
    document: Any = yaml.load(text, Loader=_EditorLoader)  # a safe loader with fewer types
    return bool(jsonschema.Draft202012Validator(json_schema()).is_valid(document))


def test_schema_file_is_in_step() -> None:
    """Written by: json.dumps(json_schema(), indent=2) and a line break."""
    assert (DEPLOY / "sluice.schema.json").read_text() == json.dumps(json_schema(), indent=2) + "\n"


def test_schema_is_a_schema_and_describes_every_setting() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    settings = [(section, name) for section, body in schema["$defs"].items() for name in body["properties"]]
    assert len(settings) > 70
    undescribed = [
        (section, name) for section, name in settings if not schema["$defs"][section]["properties"][name]["description"]
    ]
    assert not undescribed


def test_example_loads_and_fits_the_schema() -> None:
    """The example is the configuration of the design document, so its values are the documented defaults."""
    example = DEPLOY / "sluice.example.yaml"
    config = load(example, ENVIRON)
    assert schema_accepts(example.read_text())
    assert config.keys[1].expires == dt.datetime(2027, 1, 1, tzinfo=dt.UTC)


def test_example_shows_the_defaults(tmp_path: Path) -> None:
    example = load(DEPLOY / "sluice.example.yaml", ENVIRON)
    bare = load_text(tmp_path, UPSTREAM + "models: {m: {}}")
    for section in ("server", "ops", "store", "ledger", "queue", "retries", "breaker", "shutdown", "log"):
        assert getattr(example, section) == getattr(bare, section), section
    openai, local = example.upstreams["openai"], bare.upstreams["local"]
    for setting in ("headers", "query", "usage", "max_concurrency", "timeouts", "tls", "proxy"):
        assert getattr(openai, setting) == getattr(local, setting), setting
    for setting in ("max_output_tokens", "encoding"):
        assert getattr(example.models["gpt-4o*"], setting) == getattr(bare.models["m"], setting), setting


@pytest.mark.parametrize(
    "text",
    [
        "server: {port: '${PORT:-1}', write_stall: 5s, keepalive_comment: off}",
        "server: {write_stall: 90, keepalive_comment: null, tls: }",
        "server: {write_stall: '${S:-5s}', host: '${H:-localhost}'}",
        "models:\nplans:\nkeys:",
        "models: {a: {routes: [{weight: 0.5}], price: null}}",
        "log: {level: '${L:-info}'}",
        "upstreams: {a: {base_url: 'http://h', auth: none, query: {v: 2024-10-21, w: 1}, tls: {verify: '${V:-no}'}}}",
        "upstreams: {a: {base_url: 'http://h', auth: none, timeouts: {total: off, idle: '${I:-off}'}}}",
    ],
)
def test_schema_and_loader_accept(tmp_path: Path, text: str) -> None:
    text = text if text.startswith("upstreams") else UPSTREAM + text
    assert problems_of(tmp_path, text) == []
    assert schema_accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "server: {prot: 1}",
        "server: {port: 70000}",
        "server: {port: '8080'}",
        "server: {write_stall: soon}",
        "server: {write_stall: off}",
        "server: {write_stall: 0}",
        "server: {host: 'a b'}",
        "server: []",
        "models: {'a b': {}}",
        "models: {m: {routes: {}}}",
        "plans: {a: {weight: 0}}",
        "keys: [{secret: 0123456789abcdef}]",
        "log: {level: loud}",
        "upstreams: {a: {auth: none}}",
    ],
)
def test_schema_and_loader_refuse(tmp_path: Path, text: str) -> None:
    text = text if text.startswith("upstreams") else UPSTREAM + text
    assert problems_of(tmp_path, text)
    assert not schema_accepts(text)


def test_effective_configuration_hides_every_secret(tmp_path: Path) -> None:
    text = """\
ops: {admin_token: hush-1}
store: {url: "redis://:hush-2@h/0"}
ledger: {url: "postgresql://u@h/d?password=hush-3"}
upstreams:
  a:
    base_url: http://h
    api_keys: [hush-4, hush-5]
    headers: {x: hush-6}
    query: {key: hush-7, api-version: v1}
    proxy: http://u:hush-8@h:1
keys: [{id: a, secret: hush-9}]
"""
    shown = effective(load_text(tmp_path, text))
    assert "hush" not in shown
    assert "api-version: v1" in shown
    assert "redis://***@h/0" in shown
    assert yaml.safe_load(shown)["upstreams"]["a"]["api_keys"] == ["***", "***"]


def test_effective_configuration_loads_as_itself(tmp_path: Path) -> None:
    """Where there is no secret to mask, nothing is lost: not durations, times, or text that looks like a variable."""
    text = """\
server: {keepalive_comment: 250ms, write_stall: 90}
upstreams: {a: {base_url: "http://h/$${A}", auth: none, query: {v: "1", w: "$${X}", x: "null"}}}
models: {"*": {routes: [{model: "off", weight: 0.25}], price: {input: 0.1}}}
plans: {std: {spend: [2.50/day], endpoints: [/files*]}}
keys: [{id: a, secret: "***", plan: std, expires: 2027-01-01T00:00:00+02:00}]
retries: {budget: 0.15, backoff: 1.5s}
"""
    config = load_text(tmp_path, text)
    again = load_text(tmp_path, effective(config))
    assert again == config
    assert again.upstreams["a"].query["w"] == "${X}"
