"""A configuration file is read in every notation, or says all that is wrong at once; and without one Sluice starts."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

import pytest

from proxy.config import read
from proxy.config.file import load, state_directory, wants_simulator, without_file
from proxy.config.problems import MAX_PROBLEMS, ConfigError, Problem
from proxy.config.settings import Config
from proxy.config.values import Secret
from proxy.config.yaml_tree import MAX_FILE_BYTES
from tests.fakes.config_files import UPSTREAM, load_text, problems_of

if TYPE_CHECKING:
    from pathlib import Path


def test_three_mistakes_three_lines(tmp_path: Path) -> None:
    text = """\
server: {prot: 8080}
upstreams:
  openai:
    base_url: https://api.openai.com/v1
    auth: none
    max_concurrency: many
keys:
  - {id: team-a, secret: "${TEAM_A_KEY}"}
"""
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    file = tmp_path / "sluice.yaml"
    assert str(caught.value).splitlines() == [
        f"{file}:1: server.prot: is no setting; did you mean port?",
        f"{file}:6: upstreams.openai.max_concurrency: must be a whole number, not 'many'",
        f"{file}:8: keys[0].secret: needs the environment variable TEAM_A_KEY, which is not set",
    ]


def test_problem_without_a_line_names_the_file() -> None:
    assert str(Problem(path="", line=None, message="is bad", file="x.yaml")) == "x.yaml: is bad"
    assert str(Problem(path="server.tls", line=None, message="is bad")) == "configuration: server.tls: is bad"


def test_without_upstreams_a_file_is_incomplete(tmp_path: Path) -> None:
    for text in ("", "# all commented out\n", "upstreams:\n", "upstreams: {}\n", "null\n"):
        assert [path for path, _, _ in problems_of(tmp_path, text)] == ["upstreams"]
    assert problems_of(tmp_path, "- a\n") == [("", 1, "must be a mapping, not a list")]


def test_number_of_problems_is_bounded(tmp_path: Path) -> None:
    found = problems_of(tmp_path, UPSTREAM + "".join(f"x{number}: 1\n" for number in range(1000)))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == ("", None, "has more problems than these")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load(tmp_path / "absent.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    assert problems_of(tmp_path, b"a: 1\nb: \xff\n") == [("", 2, "is not UTF-8")]
    assert problems_of(tmp_path, "a: [1\n")[0][1] == 2
    (found,) = problems_of(tmp_path, b"#" * (MAX_FILE_BYTES + 1))
    assert "is larger than" in found[2]


def test_alias_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_NODES", 1000)
    routes = ",".join(["{upstream: local}"] * 40)
    models = "".join(f"  m{number}: *m\n" for number in range(40))
    (found,) = problems_of(tmp_path, f"{UPSTREAM}models:\n  m: &m {{routes: [{routes}]}}\n{models}")
    assert "holds more than 1000 values when its aliases are followed" in found[2]


def test_every_notation_of_a_file(tmp_path: Path) -> None:
    text = """\
server: {port: "${PORT:-8080}", write_stall: "${STALL}", keepalive_comment: 15s, cors_origins: ["https://a:1", "*"]}
ops: {admin_token: "${TOKEN:-}", port: 0}
upstreams:
  azure:
    base_url: https://${RESOURCE}.openai.azure.com/openai
    api_keys: ["${K1}", k2]
    auth: "api-key"
    headers: {X-Number: 5, X-True: yes}
    query: {api-version: 2024-10-21}
    timeouts: &timeouts {connect: 250ms, first_byte: off, idle: OFF, total: null}
    tls: {verify: no, ca: "${CA:-}"}
    proxy: http://u:p@proxy:3128
  local: {base_url: "http://[::1]:11434/v1", auth: none, timeouts: *timeouts}
models:
  any: {}
  "*": {routes: [{model: other}, {upstream: local, priority: 1}]}
plans:
keys:
  - {id: 7, secret: 1234567890123456, expires: 2027-01-01T00:00:00+02:00}
"""
    environ = {"STALL": "90", "RESOURCE": "mine", "K1": "key-one"}
    config = load_text(tmp_path, text, environ)
    assert (config.server.port, config.server.write_stall, config.server.keepalive_comment) == (8080, 90.0, 15.0)
    assert config.server.cors_origins == ("https://a:1", "*")
    assert config.ops.admin_token == Secret("")
    azure, local = config.upstreams["azure"], config.upstreams["local"]
    assert azure.base_url == "https://mine.openai.azure.com/openai"
    assert azure.api_keys == (Secret("key-one"), Secret("k2"))
    assert azure.headers == {"X-Number": Secret("5"), "X-True": Secret("yes")}
    assert azure.query == {"api-version": "2024-10-21"}
    assert (azure.timeouts.connect, azure.timeouts.first_byte, azure.timeouts.idle) == (0.25, None, None)
    assert local.timeouts == azure.timeouts
    assert (azure.tls.verify, azure.tls.ca) == (False, None)
    assert [(r.upstream, r.model) for r in config.models["any"].routes] == [("azure", None)]
    assert [(r.upstream, r.model) for r in config.models["*"].routes] == [("azure", "other"), ("local", None)]
    assert config.plans == {}
    (key,) = config.keys
    assert (key.id, key.secret) == ("7", Secret("1234567890123456"))
    zone = dt.timezone(dt.timedelta(hours=2))
    assert key.expires == dt.datetime(2027, 1, 1, tzinfo=zone)


def test_environment_cannot_inject_structure_or_show_in_messages(tmp_path: Path) -> None:
    environ = {"X": "hush}, auth: none, proxy: {a", "Y": "hush"}
    text = "upstreams: {a: {base_url: http://h, api_keys: [k], headers: {x: '${X}'}}}\nserver: {port: '${Y}'}\n"
    (found,) = problems_of(tmp_path, text, environ)
    assert found == ("server.port", 2, "must be a whole number, not '${Y}'")


def test_control_characters_of_the_environment_are_refused(tmp_path: Path) -> None:
    for bad in ("a\nb", "a\x00b", "a\udcffb"):
        text = UPSTREAM + "keys: [{id: a, secret: '${X}'}]\nmodels: {m: {routes: [{model: '${X}'}]}}\n"
        found = problems_of(tmp_path, text, {"X": bad})
        assert [path for path, _, _ in found] == ["keys[0].secret", "models.m.routes[0].model"]


def test_a_loaded_configuration_shows_no_secret(tmp_path: Path) -> None:
    text = """\
ops: {admin_token: hush-1}
store: {url: "redis://:hush-2@h"}
ledger: {url: "postgresql://u:hush-3@h/d"}
upstreams: {a: {base_url: "http://h", api_keys: [hush-4], headers: {x: hush-5}, proxy: "http://u:hush-6@h"}}
keys: [{id: a, secret: hush-7}]
"""
    assert "hush" not in repr(load_text(tmp_path, text))


def test_without_a_file_and_with_a_key_of_openai(tmp_path: Path) -> None:
    config, secret = without_file({"OPENAI_API_KEY": " sk-up "}, tmp_path)
    assert re.fullmatch(r"sk-sluice-[A-Za-z0-9_-]{43}", secret)
    assert secret != without_file({"OPENAI_API_KEY": "sk-up"}, tmp_path)[1]
    assert [key.secret for key in config.keys] == [Secret(secret)]
    assert config.upstreams["openai"].api_keys == (Secret("sk-up"),)
    assert config.server.host == config.ops.host == "127.0.0.1"
    assert config.ledger.url.reveal() == f"sqlite:///{tmp_path}/sluice.db"
    assert config.store.url.reveal() == "memory://"


def test_without_a_file_and_without_a_key_of_openai(tmp_path: Path) -> None:
    environ = {"OPENAI_API_KEY": " "}
    assert wants_simulator(environ)
    config, _ = without_file(environ, tmp_path, "http://127.0.0.1:4321/v1")
    assert [(name, up.base_url, up.auth) for name, up in config.upstreams.items()] == [
        ("simulator", "http://127.0.0.1:4321/v1", "none")
    ]
    assert type(config) is Config
    with pytest.raises(ValueError, match="no simulator"):
        without_file(environ, tmp_path)


def test_state_belongs_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(state_directory({"XDG_STATE_HOME": "/state"})) == "/state/sluice"
    assert str(state_directory({"XDG_STATE_HOME": "relative"})) == "/home/someone/.local/state/sluice"
    assert str(state_directory({})) == "/home/someone/.local/state/sluice"
