"""Every mistake in a configuration file is found, at its path and line, in words that help and hold no secret."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.fakes.config_files import UPSTREAM, problems_of

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789abcdef"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()

# each: what follows the first line, the path and line of the one problem, a pattern of its message
WRONG_VALUES = [
    ("server: {port: eighty}", "server.port", 2, "must be a whole number, not 'eighty'"),
    ("server: {port: '8080'}", "server.port", 2, "must be a whole number, not the text '8080'"),
    ("server: {port: 65536}", "server.port", 2, "must be at most 65535"),
    ("server: {port: -1}", "server.port", 2, "must be at least 0"),
    ("server: {port: 010}", "server.port", 2, "must be a whole number"),
    ("server: {port: }", "server.port", 2, "must be a whole number, not nothing"),
    ("server: {port: [80]}", "server.port", 2, "must be a whole number, not a list"),
    ("server: {max_connections: 1.5}", "server.max_connections", 2, "must be a whole number"),
    ("server: {max_request_bytes: 0}", "server.max_request_bytes", 2, "must be at least 1"),
    ("server: {write_stall: 0}", "server.write_stall", 2, "must be more than 0"),
    ("server: {write_stall: off}", "server.write_stall", 2, "must be a duration"),
    ("server: {write_stall: 400d}", "server.write_stall", 2, "must be at most 366d"),
    ("server: {host: 'http://x'}", "server.host", 2, "must be a host name"),
    ("server: {host: {a: b}}", "server.host", 2, "not a mapping"),
    ("server: {tls: {certificate: '%s'}}" % ("a" * 4097), "server.tls.certificate", 2, "at most 4096 characters"),
    ("server: {cors_origins: '*'}", "server.cors_origins", 2, "must be a list, not a single value"),
    ("server: {cors_origins: [example.com]}", "server.cors_origins[0]", 2, "must be \\* or an origin"),
    ("server: {cors_origins: ['https://a/b']}", "server.cors_origins[0]", 2, "must be \\* or an origin"),
    ("server: {trusted_proxies: 10.0.0.1}", "server.trusted_proxies", 2, "must be a list, not a single value"),
    ("server:\n  trusted_proxies:\n  - ::1\n  - lb.local", "server.trusted_proxies[1]", 5, "an address or a network"),
    ("server: {trusted_proxies: [10.0.0.1/8]}", "server.trusted_proxies[0]", 2, "10.0.0.0/8 would be the network"),
    ("server: {trusted_proxies: ['::/0']}", "server.trusted_proxies[0]", 2, "not every address there is"),
    ("server: {auth_failures: 60}", "server.auth_failures", 2, "must be an amount and a window, such as 60/minute"),
    ("server: {auth_failures: off}", "server.auth_failures", 2, "an amount and a window, such as 60/minute, not 'off'"),
    ("server: {auth_failures: 0/minute}", "server.auth_failures", 2, "must allow more than nothing, not '0/minute'"),
    ("server: {auth_failures: 5/fortnight}", "server.auth_failures", 2, "has an unknown window"),
    ("server: {auth_failures: 1000/day}", "server.auth_failures", 2, "a window of seconds, minutes or hours"),
    ("server: 5", "server", 2, "must be a mapping, not a single value"),
    ("server: {[a]: 1}", "server.?", 2, "must be the name of a setting, not a list"),
    ("server: {<<: {port: 1}}", "server.<<", 2, "merge keys are not read"),
    ("sever: {}", "sever", 2, "did you mean server"),
    ("'a b.c': {}", '"a b.c"', 2, "is no setting"),
    ("server: {tls: {certificate: a.pem}}", "server.tls.private_key", 2, "is needed with certificate"),
    ("server: {tls: {private_key: a.pem}}", "server.tls.certificate", 2, "is needed with private_key"),
    ("server: {workers: 2}", "server.workers", 2, "more than one worker needs a shared store"),
    ("ops: {port: 8080}", "ops.port", 2, "makes one address of server and ops"),
    ("server: {host: 0.0.0.0, port: 9090}", "server.port", 2, "makes one address of server and ops"),
    ("store: {url: 'mysql://h'}", "store.url", 2, "must start with one of memory://"),
    ("store: {url: memory}", "store.url", 2, "must start with one of memory://"),
    ("store: {on_failure: denny}", "store.on_failure", 2, "one of allow, deny, not 'denny'; did you mean deny"),
    ("ledger: {url: 'mysql://h'}", "ledger.url", 2, "must start with one of sqlite://"),
    ("retries: {budget: 1.5}", "retries.budget", 2, "must be at most 1"),
    ("retries: {budget: .nan}", "retries.budget", 2, "must be a number, not '.nan'"),
    ("retries: {budget: 1e999}", "retries.budget", 2, "must be a number"),
    ("retries: {backoff: 10s}", "retries.max_backoff", 2, "must not be shorter than backoff"),
    ("breaker: {cooldown: 10m}", "breaker.max_cooldown", 2, "must not be shorter than cooldown"),
    ("log: {level: null}", "log.level", 2, "one of debug, error, info, warning, not 'null'"),
    ("log:\n  level: info\n  level: debug", "log.level", 4, "is set twice, first on line 3"),
    ("log: {level: info}\nlog: {}", "log", 3, "is set twice, first on line 2"),
    ("models: {'*': {routes: [{upstream: lokal}]}}", "models.*.routes[0].upstream", 2, "did you mean local"),
    ("models: {a.b: {routes: [{weight: 0}]}}", 'models."a.b".routes', 2, "all have weight 0"),
    ("models: {a: {routes: [{weight: -1}]}}", "models.a.routes[0].weight", 2, "must be at least 0"),
    ("models: {'a[b]': {}}", 'models."a[b]"', 2, "as a name must be a name or a pattern"),
    ("models: {'a b': {}}", 'models."a b"', 2, "as a name must be a name or a pattern"),
    ("models: {a: {price: {input: -1}}}", "models.a.price.input", 2, "must be at least 0"),
    ("models: {a: {encoding: gpt2}}", "models.a.encoding", 2, "one of cl100k_base, o200k_base"),
    ("plans: {a: {requests: [0/minute]}}", "plans.a.requests[0]", 2, "must allow more than nothing, not '0/minute'"),
    ("plans: {a: {tokens: [1/minute, ten/day]}}", "plans.a.tokens[1]", 2, "an amount and a window"),
    ("plans: {a: {tokens: [1.5/minute]}}", "plans.a.tokens[0]", 2, "must be a whole amount"),
    ("plans: {a: {spend: [5/fortnight]}}", "plans.a.spend[0]", 2, "unknown window"),
    ("plans: {a: {concurrency: 0}}", "plans.a.concurrency", 2, "must be at least 1"),
    ("plans: {a: {weight: 0}}", "plans.a.weight", 2, "must be more than 0"),
    ("plans: {a: {models: ['[a-z]*']}}", "plans.a.models[0]", 2, "without spaces or brackets"),
    ("plans: {a: {models: ['']}}", "plans.a.models[0]", 2, "must be a name or a pattern"),
    ("plans: {a: {endpoints: [inferense]}}", "plans.a.endpoints[0]", 2, "did you mean inference"),
    ("plans: {a: {endpoints: [/v1/files]}}", "plans.a.endpoints[0]", 2, "without the /v1"),
    (
        "ledger: {keep: 7d}\nplans: {a: {model_limits: {m: {spend: [1/day, 5/month]}}}}",
        "ledger.keep",
        2,
        r"shorter than the window of plans.a.model_limits.m.spend\[1\] \(5/month\)",
    ),
    (
        f"ledger: {{keep: 12h}}\nkeys: [{{id: a, secret: {KEY}, limits: {{requests: [5/day]}}}}]",
        "ledger.keep",
        2,
        r"shorter than the window of keys\[0\].limits.requests\[0\]",
    ),
    ("plans: {' a': {}}", 'plans." a"', 2, "as a name must be 1 to 128"),
    ("keys: {a: b}", "keys", 2, "must be a list, not a mapping"),
    ("keys: [a]", "keys[0]", 2, "must be a mapping, not a single value"),
    (f"keys: [{{secret: {KEY}}}]", "keys[0].id", 2, "is required"),
    (f"keys: [{{id: 'a b', secret: {KEY}}}]", "keys[0].id", 2, "must be 1 to 128"),
    ("keys:\n- id: a", "keys[0].secret", 3, "is required, or secret_sha256"),
    ("keys: [{id: a, secret: ''}]", "keys[0].secret", 2, "is required, or secret_sha256"),
    ("keys: [{id: a, secret: 'a b'}]", "keys[0].secret", 2, "printable ASCII without spaces"),
    ('keys: [{id: a, secret: "a\\nb"}]', "keys[0].secret", 2, "holds a line break"),
    ("keys: [{id: a, secret_sha256: abc}]", "keys[0].secret_sha256", 2, "must be 64 hex digits"),
    (f"keys: [{{id: a, secret: {KEY}, secret_sha256: {DIGEST}}}]", "keys[0].secret_sha256", 2, "keep one of the two"),
    (f"keys: [{{id: a, secret: {KEY}, plan: b}}]", "keys[0].plan", 2, "there is no plan 'b'"),
    (f"plans: {{std: {{}}}}\nkeys: [{{id: a, secret: {KEY}, plan: sdt}}]", "keys[0].plan", 3, "did you mean std"),
    (f"keys: [{{id: a, secret: {KEY}, expires: 2027-01-01}}]", "keys[0].expires", 2, "a time with its zone"),
    (f"keys: [{{id: a, secret: {KEY}, expires: never}}]", "keys[0].expires", 2, "a time with its zone"),
    (f"keys: [{{id: a, secret: {KEY}, limits: {{requests: [x]}}}}]", "keys[0].limits.requests[0]", 2, "an amount"),
    (f"keys:\n- {{id: a, secret: {KEY}}}\n- {{id: a, secret: x{KEY}}}", "keys[1].id", 4, "is the id of keys\\[0\\]"),
    (
        f"keys:\n- {{id: a, secret: {KEY}}}\n- {{id: b, secret: {KEY}}}",
        "keys[1].secret",
        4,
        "the secret of keys\\[0\\]",
    ),
    (
        f"keys:\n- {{id: a, secret: {KEY}}}\n- {{id: b, secret_sha256: {DIGEST.upper()}}}",
        "keys[1].secret_sha256",
        4,
        "is",
    ),
]


@pytest.mark.parametrize(("text", "path", "line", "message"), WRONG_VALUES)
def test_wrong_value(tmp_path: Path, text: str, path: str, line: int, message: str) -> None:
    (found,) = problems_of(tmp_path, UPSTREAM + text)
    assert found[:2] == (path, line)
    assert re.search(message, found[2]), found[2]


# each: the settings of an upstream, the setting at fault, a pattern of the message
WRONG_UPSTREAMS = [
    ("auth: none", "base_url", "is required"),
    ("base_url: ftp://h, auth: none", "base_url", "must be an http:// or https:// URL with a host"),
    ("base_url: 'https://', auth: none", "base_url", "must be an http:// or https:// URL with a host"),
    ("base_url: api.openai.com, auth: none", "base_url", "must be an http:// or https:// URL with a host"),
    ("base_url: 'http://h:99999', auth: none", "base_url", "must be an http:// or https:// URL with a host"),
    ("base_url: 'http://[::1', auth: none", "base_url", "must be an http:// or https:// URL with a host"),
    ("base_url: 'http://h/a b', auth: none", "base_url", "must be an http:// or https:// URL with a host"),
    ("base_url: 'http://u:hush@h', auth: none", "base_url", "must not hold credentials"),
    ("base_url: 'http://h/v1?key=hush', auth: none", "base_url", "must not have a query"),
    ("base_url: 'http://h/v1#hush', auth: none", "base_url", "must not have a fragment"),
    ("base_url: http://h", "api_keys", "set auth: none"),
    ("base_url: http://h, auth: api-key", "api_keys", "set auth: none"),
    ("base_url: http://h, auth: passthrough, api_keys: [hush]", "api_keys", "are never used with auth: passthrough"),
    ("base_url: http://h, auth: none, api_keys: [hush]", "api_keys", "are never used with auth: none"),
    ("base_url: http://h, auth: baerer, api_keys: [hush]", "auth", "did you mean bearer"),
    ("base_url: http://h, api_keys: ['']", "api_keys[0]", "is empty"),
    ("base_url: http://h, api_keys: [a, 'hush hush']", "api_keys[1]", "printable ASCII without spaces"),
    ("base_url: http://h, api_keys: [{a: hush}]", "api_keys[0]", "must be text, not a mapping"),
    ("base_url: http://h, auth: none, headers: {'a b': hush}", 'headers."a b"', "is no name of a header"),
    ("base_url: http://h, auth: none, headers: {Host: hush}", "headers.Host", "Sluice writes itself"),
    ("base_url: http://h, auth: none, headers: {X: hush, x: hush}", "headers.x", "is set twice"),
    ("base_url: http://h, auth: none, headers: {X: ' hush'}", "headers.X", "must be printable ASCII"),
    ('base_url: http://h, auth: none, headers: {X: "hush\\r\\nY: z"}', "headers.X", "line break"),
    ("base_url: http://h, auth: none, headers: {X: }", "headers.X", "must be text, not nothing"),
    ("base_url: http://h, auth: none, max_concurrency: 0", "max_concurrency", "must be at least 1"),
    ("base_url: http://h, auth: none, timeouts: {connect: null}", "timeouts.connect", "must be a duration"),
    ("base_url: http://h, auth: none, tls: {verify: maybe}", "tls.verify", "must be true or false, not 'maybe'"),
    ("base_url: http://h, auth: none, tls: {client_key: k.pem}", "tls.client_certificate", "is needed"),
    ("base_url: http://h, auth: none, proxy: 'socks5://u:hush@h'", "proxy", "must be http://HOST:PORT"),
    ("base_url: http://h, auth: none, proxy: 'http://h/x?hush'", "proxy", "must be http://HOST:PORT"),
]


@pytest.mark.parametrize(("settings", "path", "message"), WRONG_UPSTREAMS)
def test_wrong_upstream(tmp_path: Path, settings: str, path: str, message: str) -> None:
    """No message quotes what may be a credential."""
    (found,) = problems_of(tmp_path, f"upstreams:\n  x:\n    {{{settings}}}\n")
    assert found[0] == f"upstreams.x.{path}"
    assert re.search(message, found[2]), found[2]
    assert "hush" not in found[2]


def test_one_mistake_does_not_hide_or_cause_another(tmp_path: Path) -> None:
    """A route to an upstream whose own settings are wrong is fine; one to no upstream at all is not."""
    text = """\
upstreams:
  a: {base_url: nonsense, auth: none}
models:
  m: {routes: [{upstream: a}, {upstream: c}]}
plans: {std: {weight: none}}
keys:
  - {id: k, secret: "${NO}", plan: std, expires: 1}
  - {id: k, secret_sha256: "${NO}", plan: other}
"""
    assert [path for path, _, _ in problems_of(tmp_path, text)] == [
        "upstreams.a.base_url",
        "models.m.routes[1].upstream",
        "plans.std.weight",
        "keys[0].secret",
        "keys[0].expires",
        "keys[1].secret_sha256",
        "keys[1].plan",
        "keys[1].id",
    ]
