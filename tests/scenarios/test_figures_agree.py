"""Promise 8: what an exchange used is the same in the log, the metrics, the ledger and `sluice usage`.

A thousand exchanges of every kind, several keys and models, and each of the four asked by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.client import RecordingClient
from tests.fakes.commands import command, environment
from tests.fakes.ledgers import away
from tests.fakes.mixed import DEAF, KEYS, KINDS, Leaves, draw
from tests.fakes.mixing import PRICES, MixedUpstream, mixed_proxy, play
from tests.fakes.waiting import LONG_S, until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prometheus_client.samples import Sample

    from tests.fakes.mixed import Plan
    from tests.fakes.running import Running

COUNT: Final = 1000
SEED: Final = 1000
AT_ONCE: Final = 24
PATIENCE_S: Final = LONG_S
FIGURES: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
SAME: Final = ("key_id", "endpoint", "model", "upstream", "status", "outcome", "grade", "attempts")
OPEN: Final = "SELECT count(*) open FROM exchanges WHERE ended_ms IS NULL"
NANO: Final = 1_000_000_000

Rows = dict[str, dict[str, Any]]
Charges = Counter[tuple[str, ...]]


async def play_all(plans: list[Plan], proxy: Running) -> None:
    """All of them, a few at once, until the proxy has ended each."""
    waiting = iter(plans)

    async def caller() -> None:
        for plan in waiting:
            await asyncio.wait_for(play(plan, proxy), PATIENCE_S)

    async with asyncio.TaskGroup() as callers:
        for _ in range(AT_ONCE):
            callers.create_task(caller())
    await until(lambda: len(proxy.worker.app.live) == 0, "no exchange in flight", PATIENCE_S)


def asked(file: Path, statement: str) -> list[dict[str, Any]]:
    """What the ledger itself answers."""

    def ask() -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]

    return away(ask)


async def metrics(proxy: Running) -> list[Sample]:
    """The samples as a scraper gets them."""
    async with await RecordingClient.connect(proxy.ops_port) as client:
        text = (await client.ask("GET", "/metrics", key=None)).body.decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def summed(samples: Iterable[Sample], name: str, *labels: str, unit: int = 1) -> Charges:
    """A counter by some of its labels, in whole `unit`ths."""
    found: Charges = Counter()
    for sample in samples:
        if sample.name == name:
            found[tuple(sample.labels[label] for label in labels)] += round(sample.value * unit)
    return found


def by_kind(charged: dict[str, Any]) -> dict[str, int]:
    """Tokens as the metrics part them: no token is of two kinds."""
    cached, reasoning = charged["cached_tokens"] or 0, charged["reasoning_tokens"] or 0
    return {
        "input": charged["input_tokens"] - cached,
        "cached": cached,
        "output": charged["output_tokens"] - reasoning,
        "reasoning": reasoning,
    }


def label_of(model: str) -> str:
    """The configured pattern, which stands in metrics for the model."""
    return "glob-*" if model.startswith("glob-") else model


def expected(plan: Plan) -> tuple[object, ...]:
    """What the ledger must say of it."""
    kind = plan.kind
    endpoint, model = ("stateful", "") if kind.endpoint == "files" else (kind.endpoint, plan.model)
    upstream = plan.model if plan.model in DEAF else "up"
    figures: object = None
    if kind.says is not None:
        figures = tuple(getattr(kind.says(plan), name) for name in FIGURES)
    elif kind.grade == "counted":
        figures = 0 if kind.leaves is Leaves.BEFORE else plan.words
    return plan.key, endpoint, model, upstream, kind.streamed, kind.status, kind.outcome, kind.grade, figures


def told(row: dict[str, Any]) -> tuple[object, ...]:
    """The same of a row."""
    figures: object = None
    if row["grade"] == "exact":
        figures = tuple(row[name] for name in FIGURES)
    elif row["grade"] == "counted":
        figures = row["output_tokens"]
    known = (row[name] for name in ("key_id", "endpoint", "model", "upstream"))
    return *known, bool(row["streamed"]), row["status"], row["outcome"], row["grade"], figures


def assert_each_row_is_as_planned(plans: list[Plan], rows: Rows) -> None:
    planned = Counter(expected(plan) for plan in plans if plan.kind.grade is not None)
    found = Counter(told(row) for row in rows.values())
    assert (planned - found, found - planned) == (Counter(), Counter())
    for row in rows.values():
        price = PRICES.get(label_of(row["model"]))
        kinds = by_kind(row)
        if price is None:
            assert row["cost_nano_usd"] == 0
        else:
            cached = price.input if price.cached_input is None else price.cached_input
            usd = kinds["input"] * Decimal(str(price.input)) + kinds["cached"] * Decimal(str(cached))
            usd += row["output_tokens"] * Decimal(str(price.output))
            assert row["cost_nano_usd"] == (usd * 1000).to_integral_value(ROUND_HALF_EVEN)
        if row["grade"] == "unknown":
            assert row["input_tokens"] + row["output_tokens"] == row["reserved_tokens"]
        elif row["grade"] == "counted":
            assert row["input_tokens"] > 0


def assert_the_lines_say_what_the_rows_say(lines: list[dict[str, Any]], rows: Rows, plans: list[Plan]) -> None:
    by_id = {line["id"]: line for line in lines}
    assert len(by_id) == len(lines) == len(plans)
    refused = [line for line in lines if line["id"] not in rows]
    without = [plan for plan in plans if plan.kind.grade is None]
    assert Counter(line["outcome"] for line in refused) == Counter(plan.kind.outcome for plan in without)
    assert [line for line in refused if "grade" in line or "cost_usd" in line or line["attempts"]] == []
    for name, row in rows.items():
        line = by_id[name]
        assert {same: line[same] or "" for same in SAME} == {same: row[same] for same in SAME}
        assert [line.get(figure, 0) for figure in FIGURES] == [row[figure] for figure in FIGURES]
        assert round(line["cost_usd"] * NANO) == row["cost_nano_usd"]


def assert_the_metrics_say_what_the_rows_say(samples: list[Sample], lines: list[dict[str, Any]], rows: Rows) -> None:
    tokens: Charges = Counter()
    cost: Charges = Counter()
    attempts: Charges = Counter()
    for row in rows.values():
        key, model = row["key_id"], label_of(row["model"])
        for kind, count in by_kind(row).items():
            tokens[key, model, kind, row["grade"]] += count
        cost[key, model] += row["cost_nano_usd"]
        attempts[(row["upstream"],)] += row["attempts"]
    assert summed(samples, "sluice_tokens_total", "key", "model", "kind", "grade") == tokens
    assert summed(samples, "sluice_cost_usd_total", "key", "model", unit=NANO) == cost
    assert summed(samples, "sluice_upstream_attempts_total", "upstream") == attempts
    requests = Counter((line["key_id"] or "", line["endpoint"], line["outcome"], str(line["status"])) for line in lines)
    assert summed(samples, "sluice_requests_total", "key", "endpoint", "outcome", "status") == requests
    assert summed(samples, "sluice_ledger_queue") == summed(samples, "sluice_accounting_faults_total") == Counter()


def assert_the_report_says_what_sql_says(report: dict[str, Any], file: Path) -> None:
    sums = "count(*) requests, " + ", ".join(f"sum({name}) {name}" for name in (*FIGURES, "cost_nano_usd"))
    statement = f"SELECT key_id, {sums} FROM exchanges GROUP BY key_id"
    names = ("requests", *FIGURES)
    ours = {row["key_id"]: [*(row[name] for name in names), row["cost_nano_usd"]] for row in asked(file, statement)}
    theirs = {row["key"]: [*(row[name] for name in names), Decimal(row["cost_usd"]) * NANO] for row in report["rows"]}
    assert theirs == ours
    assert len(ours) == len(KEYS)
    statement = (
        "SELECT grade, count(*) requests, sum(input_tokens + output_tokens) tokens, sum(cost_nano_usd) nano_usd "
        "FROM exchanges GROUP BY grade"
    )
    by_grade = {row.pop("grade"): row for row in asked(file, statement)}
    for grade, share in report["grades"].items():
        share["nano_usd"] = Decimal(share.pop("cost_usd")) * NANO
        assert share == by_grade.pop(grade)
    assert by_grade == {}
    assert (report["open"]["requests"], report["interrupted"]) == (0, 0)


async def reported(folder: Path, ledger: str) -> dict[str, Any]:
    """What the command prints."""
    config = folder / "sluice.yaml"
    upstream = {"base_url": "http://127.0.0.1:1/v1", "auth": "none"}
    config.write_text(json.dumps({"ledger": {"url": ledger}, "upstreams": {"up": upstream}}))
    words = ("usage", "--config", str(config), "--by", "key", "--format", "json")
    async with command(*words, env=environment(folder)) as usage:
        assert await usage.ends() == 0, usage.errors
    report: dict[str, Any] = json.loads(usage.out)
    return report


async def test_a_thousand_mixed_exchanges_have_the_same_figures_everywhere(tmp_path: Path) -> None:
    plans = draw(COUNT, SEED)
    assert {plan.name for plan in plans} == KINDS.keys()
    file = tmp_path / "ledger.db"
    ledger = f"sqlite:///{file}"
    async with MixedUpstream(plans) as upstream, mixed_proxy(upstream, ledger) as proxy:
        await play_all(plans, proxy)
        # only when nothing can come any more is an empty queue the end
        await until(lambda: asked(file, OPEN) == [{"open": 0}], "every row settled", PATIENCE_S)
        await until(lambda: proxy.worker.app.ledger.waiting == 0, "an empty queue", PATIENCE_S)
        await until(lambda: proxy.log_text.count('"exchange"') >= COUNT, "every line written", PATIENCE_S)
        samples, lines = await metrics(proxy), proxy.exchanges
    rows = {row["id"]: row for row in asked(file, "SELECT * FROM exchanges")}
    assert_each_row_is_as_planned(plans, rows)
    assert_the_lines_say_what_the_rows_say(lines, rows, plans)
    assert_the_metrics_say_what_the_rows_say(samples, lines, rows)
    assert_the_report_says_what_sql_says(await reported(tmp_path, ledger), file)
    assert sum(row["attempts"] == 2 for row in rows.values()) >= len(DEAF)
    assert len(rows) == sum(plan.kind.grade is not None for plan in plans)
