"""README's table of metrics says what the registry has: every name, its kind and its labels, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter

from proxy.fleet import Fleet
from proxy.tasks import BackgroundTasks
from proxy.telemetry.metrics import Metrics

README = Path(__file__).parents[2] / "README.md"
ROW = re.compile(r"^\| `(sluice_\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)


class Row(NamedTuple):
    """A metric as the table has it: labels may explain their values in brackets."""

    kind: str
    labels: tuple[str, ...]
    meaning: str


class Log:
    dropped = 0


def documented(text: str) -> dict[str, Row]:
    """The rows of the section "Metrics"."""
    section = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    return {name: Row(kind, _labels(labels), meaning.strip()) for name, kind, labels, meaning in ROW.findall(section)}


def _labels(cell: str) -> tuple[str, ...]:
    without_values = re.sub(r"\([^)]*\)", "", cell)
    return tuple(sorted(label.strip() for label in without_values.split(",") if label.strip()))


def registered(registry: CollectorRegistry) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Sluice's metrics under the names that a scraper sees."""
    found = {}
    for collector in list(registry._collector_to_names):
        for metric in collector.collect():
            if metric.name.startswith("sluice_"):
                name = f"{metric.name}_total" if metric.type == "counter" else metric.name
                found[name] = metric.type, tuple(sorted(getattr(collector, "_labelnames", ())))
    return found


def test_the_table_and_the_registry_agree() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.watch_log(Log())
    workers = Fleet(2, metrics, BackgroundTasks())._snapshots._registry
    table = documented(README.read_text(encoding="utf-8"))
    shown = registered(registry) | registered(workers)
    assert {name: (row.kind, row.labels) for name, row in table.items()} == shown


def test_the_table_gives_a_meaning_to_each() -> None:
    table = documented(README.read_text(encoding="utf-8"))
    assert table
    assert {name for name, row in table.items() if len(row.meaning) < 10} == set()


def test_a_metric_that_is_missing_from_the_table_would_be_noticed() -> None:
    registry = CollectorRegistry()
    Counter("sluice_new_total", "Something new.", ("key", "by"), registry=registry)
    assert registered(registry) == {"sluice_new_total": ("counter", ("by", "key"))}
    text = "\n## Metrics\n| metric | kind | | |\n| `sluice_new_total` | counter | key, by (a, b) | something new |\n"
    assert documented(text) == {"sluice_new_total": Row("counter", ("by", "key"), "something new")}
    assert documented(text.replace("## Metrics", "## Other")) == {}
