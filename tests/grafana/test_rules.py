"""Rules and alerts: valid, each tried out both ways, each with a severity, words and a place in the runbook."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import yaml

from proxy.core import errors
from proxy.core.errors import Blame, ErrorKind
from tests.fakes.prometheus import promtool
from tests.grafana.sources import ALERT_TESTS, FOLDER, RULE_FILES, alerts, names, recorded

if TYPE_CHECKING:
    from pathlib import Path

needs_promtool = pytest.mark.timeout(240)
FIRST_BYTE_BUCKET_S = 6


def tried() -> dict[str, Counter[bool]]:
    """How often each alert is expected to fire, and not to."""
    found: dict[str, Counter[bool]] = {}
    for file in ALERT_TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                found.setdefault(case["alertname"], Counter())[bool(case.get("exp_alerts"))] += 1
    return found


class TestPromtool:
    pytestmark = needs_promtool

    def test_the_rules_are_valid(self) -> None:
        checked = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULE_FILES)
        assert checked.returncode == 0, checked.stdout + checked.stderr

    @pytest.mark.parametrize("file", ALERT_TESTS, ids=lambda file: str(file.stem))
    def test_the_alerts_fire_when_they_should_and_only_then(self, file: Path) -> None:
        tested = promtool("test", "rules", file)
        assert tested.returncode == 0, tested.stdout + tested.stderr

    def test_promtool_notices(self, tmp_path: Path) -> None:
        """A test of alerts that cannot fail proves nothing."""
        text = next(file for file in ALERT_TESTS if file.stem == "stores").read_text()
        assert "0+5x10" in text
        spoilt = tmp_path / "spoilt.yaml"
        spoilt.write_text(text.replace("0+5x10", "0+1x10").replace("../../..", str(FOLDER.parent)))
        assert promtool("test", "rules", spoilt).returncode != 0


def test_every_alert_is_tried_both_ways() -> None:
    found = tried()
    assert found.keys() == {alert["alert"] for alert in alerts()}
    assert {name for name, times in found.items() if not times[True]} == set()
    assert {name for name, times in found.items() if not times[False]} == set()


def test_every_alert_says_how_bad_it_is_what_it_means_and_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}, alert["alert"]
        annotations = alert["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}, alert["alert"]
        # notifications are grouped by the summary: it is the same for all that an alert finds
        assert "{{" not in annotations["summary"]
        assert annotations["description"].endswith(".")


def test_every_alert_has_its_section_in_the_runbook_and_no_other_has() -> None:
    runbook = (FOLDER / "RUNBOOK.md").read_text()
    headings = re.findall(r"^## (.+)$", runbook, re.MULTILINE)
    assert headings == sorted(set(headings), key=headings.index)
    anchors = {heading.lower() for heading in headings}
    assert set(headings) == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        assert alert["annotations"]["runbook_url"] == f"grafana/RUNBOOK.md#{alert['alert'].lower()}"
    assert set(re.findall(r"\]\(#([^)]+)\)", runbook)) - anchors == set()
    for section in runbook.split("\n## ")[1:]:
        assert "**Means:**" in section
        assert "**Do:**" in section or "**Look and do:**" in section


def test_an_error_counts_against_the_objective_unless_it_is_the_client_s() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, ErrorKind)]
    expression = next(rule["expr"] for rule in recorded() if rule["record"] == "job:sluice_bad:rate5m")
    outcomes = re.search(r'outcome=~"([^"]+)"', expression)
    assert outcomes is not None
    listed = outcomes[1].split("|")
    ours = {kind.outcome for kind in kinds if kind.blame is not Blame.DOWNSTREAM}
    assert sorted(listed) == sorted(ours)
    assert ours & {kind.outcome for kind in kinds if kind.blame is Blame.DOWNSTREAM} == set()


def test_the_bucket_of_the_objective_is_one_of_the_histogram() -> None:
    from proxy.telemetry import metrics  # noqa: PLC0415 - what is private there is looked at here alone

    assert FIRST_BYTE_BUCKET_S in metrics._FIRST_BYTE_BUCKETS_S
    expression = next(rule["expr"] for rule in recorded() if rule["record"] == "job:sluice_slow_first_byte:rate5m")
    assert re.search(r'le=~"([^"]+)"', expression)
    pattern = re.findall(r'le=~"([^"]+)"', expression)[0]
    matched = [bound for bound in metrics._FIRST_BYTE_BUCKETS_S if re.fullmatch(pattern, str(float(bound)))]
    assert matched == [FIRST_BYTE_BUCKET_S]
    assert re.fullmatch(pattern, str(FIRST_BYTE_BUCKET_S))


def test_what_alerts_and_rules_take_from_other_rules_is_recorded() -> None:
    known = {rule["record"] for rule in recorded()}
    used = {name for rule in (*alerts(), *recorded()) for name in names(rule["expr"]) if ":" in name}
    assert used - known == set()
