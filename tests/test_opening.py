"""What is opened: nothing of it is left for each worker to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.fakes.postgres import fresh_database, shared_postgres
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
OPENING: Final = """
import importlib, json, sys
from prometheus_client import CollectorRegistry
from proxy import process
from proxy.config.settings import Config, LedgerConfig, StoreConfig, TracingConfig
from proxy.config.values import SecretUrl
from proxy.opening import modules_of, open_all
from proxy.telemetry.metrics import Metrics

config = Config(
    ledger=LedgerConfig(url=SecretUrl(sys.argv[1])),
    store=StoreConfig(url=SecretUrl("redis://127.0.0.1:1")),
    tracing=TracingConfig(endpoint="http://127.0.0.1:1"),
)
for module in modules_of(config):
    importlib.import_module(module)
before = frozenset(sys.modules)
opened = open_all(config, Metrics(CollectorRegistry()), None)
print(json.dumps(sorted(frozenset(sys.modules) - before)))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    with shared_postgres() as server, fresh_database(server) as database_url:
        yield database_url


def imported(url: str) -> list[str]:
    command = [sys.executable, "-c", OPENING, url]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONG_S)
    assert ran.returncode == 0, ran.stderr
    found: list[str] = json.loads(ran.stdout)
    return found


def test_what_the_configuration_needs_is_imported_before_workers_are_forked(url: str) -> None:
    imported(url)  # the first to open a database lays out its tables, and needs more
    assert imported(url) == []
