"""Every query of every dashboard and rule has data on a real Prometheus that watches real proxies under load."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.fakes.prometheus import program, running_prometheus
from tests.fakes.waiting import until_asked
from tests.grafana.sources import RULE_FILES, names, queries, recorded, selectors
from tests.grafana.watched import watched

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.prometheus import Prometheus

PATIENCE_S: Final = 90.0
OF_PROMETHEUS: Final = {"up"}


def base(name: str) -> str:
    """The metric that a histogram's series belong to."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


async def assert_all_have_data(prometheus: Prometheus, expressions: set[str]) -> None:
    """Ask again and again for those that have none yet: a rate needs two scrapes, a quantile something to count."""
    left = set(expressions)

    async def is_done() -> bool:
        for expression in sorted(left):
            if not await prometheus.values(expression):
                return False
            left.discard(expression)
        return True

    with contextlib.suppress(AssertionError):  # it would not say which have none
        await until_asked(is_done, "data for every query", PATIENCE_S)
    assert [expression for expression in sorted(left) if not await prometheus.values(expression)] == []


@pytest.mark.timeout(240)
async def test_every_query_has_data(tmp_path: Path) -> None:
    await asyncio.to_thread(program, "prometheus")
    home = tmp_path / "prometheus"
    home.mkdir()
    async with watched(tmp_path) as proxies:
        exposition = await proxies.exposition()
        targets = [f"127.0.0.1:{port}" for port in proxies.ops_ports]
        with running_prometheus(home, {"sluice": targets}, RULE_FILES) as prometheus:
            everything = queries()
            for query in everything:
                await prometheus.ask("query", query=query.expression)
            wanted = {query.expression for query in everything if not query.is_condition}
            for query in everything:
                if query.is_condition:
                    wanted |= set(selectors(query.expression))
            await assert_all_have_data(prometheus, wanted)
            assert_the_rules_were_evaluated(await prometheus.ask("rules"))
    assert_names_are_known({name for query in everything for name in names(query.expression)}, exposition)


def assert_the_rules_were_evaluated(answer: dict[str, list[dict[str, list[dict[str, str]]]]]) -> None:
    rules = [rule for group in answer["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules if rule["health"] != "ok"} == {}
    assert len(rules) > len(recorded())


def assert_names_are_known(used: set[str], exposition: str) -> None:
    """Each is exported, recorded, Prometheus' own or waited for; and each of Sluice's is drawn somewhere."""
    exported = set(re.findall(r"^# TYPE (\S+) ", exposition, re.MULTILINE))
    assert "sluice_requests_total" in exported
    known = exported | {rule["record"] for rule in recorded()} | OF_PROMETHEUS
    assert {name for name in used if base(name) not in known} == set()
    ours = {name for name in exported if name.startswith("sluice_")}
    assert ours - {base(name) for name in used} == set(), "metrics that no dashboard shows"
