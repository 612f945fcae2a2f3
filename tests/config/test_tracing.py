"""The section `tracing`: what it takes, what it refuses, and what it says where the extra is missing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from proxy.config.schema import effective
from proxy.config.values import Secret
from tests.fakes.config_files import UPSTREAM, load_text, problems_of

if TYPE_CHECKING:
    from pathlib import Path

ON = UPSTREAM + "tracing: {endpoint: http://localhost:4318}\n"
MISSING = [("tracing.endpoint", 2, "needs OpenTelemetry, which is missing: install the extra `otel`")]


def test_it_is_off_by_default(tmp_path: Path) -> None:
    tracing = load_text(tmp_path, UPSTREAM).tracing
    assert (tracing.endpoint, tracing.sample, tracing.service_name, tracing.headers) == (None, 1.0, "sluice", {})


def test_all_of_it_is_read_and_its_secrets_stay_secret(tmp_path: Path) -> None:
    text = (
        UPSTREAM + "tracing:\n  endpoint: https://traces.example/otlp\n  sample: 0.25\n  service_name: edge\n"
        '  headers: {x-team: "${TEAM}"}\n'
    )
    config = load_text(tmp_path, text, {"TEAM": "hush-0123"})
    assert (config.tracing.endpoint, config.tracing.sample) == ("https://traces.example/otlp", 0.25)
    assert config.tracing.headers == {"x-team": Secret("hush-0123")}
    assert "x-team" in effective(config)
    assert "hush-0123" not in effective(config) + repr(config)


@pytest.mark.parametrize("module", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"])
def test_without_the_extra_an_endpoint_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    assert problems_of(tmp_path, ON) == []
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert problems_of(tmp_path, ON) == MISSING
    assert problems_of(tmp_path, UPSTREAM) == []


@pytest.mark.parametrize(
    ("setting", "path", "message"),
    [
        ("endpoint: localhost:4318", "endpoint", "must be an http:// or https:// URL with a host"),
        ("endpoint: grpc://localhost:4317", "endpoint", "must be an http:// or https:// URL with a host"),
        ("endpoint: http://u:hush@localhost", "endpoint", "must not hold credentials: use headers"),
        ("endpoint: http://localhost?token=hush", "endpoint", "must not have a query: use headers"),
        ("endpoint: http://localhost#hush", "endpoint", "must not have a fragment"),
        ("sample: 1.5", "sample", "must be at most 1"),
        ("headers: {a: b, A: c}", "headers.A", "is set twice, in another case"),
        ("headers: {Host: b}", "headers.Host", "is a header that Sluice writes itself"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, setting: str, path: str, message: str) -> None:
    (problem,) = problems_of(tmp_path, UPSTREAM + f"tracing: {{{setting}}}\n")
    assert problem[:2] == (f"tracing.{path}", 2)
    assert problem[2].startswith(message)
    assert "hush" not in problem[2]
