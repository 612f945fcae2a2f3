"""What is allowed and still worth saying is said, and nothing else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from proxy.config.file import without_file
from proxy.config.warnings import warnings
from tests.fakes.config_files import UPSTREAM, load_text

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "0123456789abcdef"
KEYS = f"plans: {{std: {{}}}}\nkeys: [{{id: a, secret: {SECRET}, plan: std}}]\n"


def said(directory: Path, text: str, environ: dict[str, str] | None = None) -> str:
    return "\n".join(warnings(load_text(directory, text, environ)))


def test_nothing_to_say(tmp_path: Path) -> None:
    assert said(tmp_path, UPSTREAM + KEYS) == ""


def test_without_keys_every_request_is_refused(tmp_path: Path) -> None:
    assert "make one with `sluice keys create ID`" in said(tmp_path, UPSTREAM)


def test_keys_without_limits(tmp_path: Path) -> None:
    key = f"keys: [{{id: a, secret: {SECRET}}}]\n"
    assert said(tmp_path, UPSTREAM + key) == "there are no plans: keys have no limits"
    assert said(tmp_path, UPSTREAM + "plans: {std: {}}\n" + key) == "keys without a plan have no limits: a"


def test_short_secrets(tmp_path: Path) -> None:
    assert "shorter than 16 characters can be guessed: a" in said(tmp_path, UPSTREAM + KEYS.replace(SECRET, SECRET[1:]))
    digest = hashlib.sha256(b"short").hexdigest()
    assert said(tmp_path, UPSTREAM + KEYS.replace(f"secret: {SECRET}", f"secret_sha256: {digest}")) == ""


def test_plans_that_promise_what_is_not_there_or_bound_what_nobody_counts(tmp_path: Path) -> None:
    models = "models: {mine: {}, gpt-4o: {}, 'x-*': {}, dear: {price: {output: 1}}, new: {routes: [{model: gpt-4o}]}}\n"
    key = f"keys: [{{id: a, secret: {SECRET}, plan: std}}]\n"
    plan = "plans: {std: {models: [mine, gone, x-1, '*-y'], requests: [1/day]}}\n"
    text = "plans.std.models has models that no entry of `models` serves: gone"
    assert said(tmp_path, UPSTREAM + models + key + plan) == text
    budget = "plans: {std: {spend: [1/day]}}\n"
    text = "plans.std limits spending, but nobody knows the price of: mine"
    assert said(tmp_path, UPSTREAM + models + key + budget) == text
    assert said(tmp_path, UPSTREAM + models + key + "plans: {std: {spend: [1/day], models: [gpt-4o, dear]}}\n") == ""
    assert said(tmp_path, UPSTREAM + key + budget) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("server: {host: 0.0.0.0}", "server.host 0.0.0.0 is reachable from elsewhere without TLS"),
        ("server: {host: '::'}", "server.host :: is reachable from elsewhere without TLS"),
        ("ops: {host: 10.0.0.1}", "ops.host 10.0.0.1 is reachable from elsewhere"),
        ("server: {host: 0.0.0.0, tls: {certificate: a, private_key: b}}", ""),
        ("server: {host: localhost}\nops: {host: '::1'}", ""),
    ],
)
def test_listening_to_the_world(tmp_path: Path, settings: str, message: str) -> None:
    found = said(tmp_path, UPSTREAM + KEYS + settings)
    assert found.startswith(message) if message else found == ""


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ("base_url: http://h, api_keys: [k]", "upstreams.x.base_url is http: credentials travel in the clear"),
        ("base_url: http://h, auth: passthrough", "upstreams.x.base_url is http: credentials travel in the clear"),
        ("base_url: http://localhost, api_keys: [k]", ""),
        ("base_url: http://h, auth: none", ""),
        ("base_url: https://h, auth: none, tls: {verify: false}", "upstreams.x.tls.verify is false"),
    ],
)
def test_credentials_in_the_clear(tmp_path: Path, upstream: str, message: str) -> None:
    found = said(tmp_path, f"upstreams: {{x: {{{upstream}}}}}\n{KEYS}")
    assert found.startswith(message) if message else found == ""


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        (f"admin_token: {SECRET}", []),
        (f"host: '::1', admin_token: {SECRET}", []),
        (f"admin_token: {SECRET[1:]}", ["ops.admin_token is shorter than 16 characters and can be guessed"]),
        (
            f"host: 10.0.0.1, admin_token: {SECRET}",
            [
                "ops.host 10.0.0.1 is reachable from elsewhere: metrics are shown to whoever asks",
                "ops.admin_token travels in the clear, unless a proxy with TLS stands before ops.host",
            ],
        ),
    ],
)
def test_the_admin_token(tmp_path: Path, ops: str, expected: list[str]) -> None:
    found = said(tmp_path, f"{UPSTREAM}{KEYS}ops: {{{ops}}}\n")
    assert found.splitlines() == expected
    assert SECRET[1:] not in found


def test_settings_that_ask_for_nothing_are_not_worth_a_word(tmp_path: Path) -> None:
    text = """\
server: {workers: 1}
ops: {admin_token: "${NO:-}"}
upstreams: {x: {base_url: https://h, auth: none, max_concurrency: null}}
models: {m: {routes: [{upstream: x, model: y}], price: null}}
plans: {std: {requests: [], concurrency: null}}
keys: [{id: a, secret: 0123456789abcdef, plan: std, limits: null}]
"""
    assert said(tmp_path, text) == ""


def test_long_lists_are_cut(tmp_path: Path) -> None:
    keys = "".join(f"- {{id: k{number}, secret: {SECRET}{number}}}\n" for number in range(100))
    assert said(tmp_path, f"{UPSTREAM}plans: {{std: {{}}}}\nkeys:\n{keys}").endswith("k28, k29 and 70 more")


def test_without_a_file_only_the_lack_of_plans_is_said(tmp_path: Path) -> None:
    config, _ = without_file({"OPENAI_API_KEY": "sk"}, tmp_path)
    assert warnings(config) == ["there are no plans: keys have no limits"]
