"""Dashboards: in step with what they are made of, whole, and bound to no one's data source."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.grafana.sources import DASHBOARD_FILES, FOLDER, dashboards, panels

if TYPE_CHECKING:
    from pathlib import Path

DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TYPES = {"timeseries", "stat", "bargauge", "table", "heatmap", "state-timeline"}
UNITS = {"short", "s", "reqps", "ops", "percentunit", "currencyUSD", "bytes"}

each_dashboard = pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: str(dashboard["uid"]))


def build(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "build.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_json_is_in_step_with_the_yaml() -> None:
    checked = build(FOLDER, "--check")
    assert checked.returncode == 0, checked.stderr


def test_a_change_of_the_yaml_is_noticed_and_built(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "grafana")
    keys = folder / "keys.yaml"
    keys.write_text(keys.read_text().replace("title: Closest to their limits", "title: Close to their limits"))
    stale = build(folder, "--check")
    assert (stale.returncode, "sluice-keys.json" in stale.stderr) == (1, True)
    assert "sluice-overview.json" not in stale.stderr
    assert build(folder).returncode == 0
    assert build(folder, "--check").returncode == 0
    assert "Close to their limits" in (folder / "dashboards" / "sluice-keys.json").read_text()


def test_both_are_there_under_names_that_links_may_rely_on() -> None:
    assert {dashboard["uid"]: dashboard["title"] for dashboard in dashboards()} == {
        "sluice-overview": "Sluice overview",
        "sluice-keys": "Sluice keys",
    }
    assert [file.stem for file in DASHBOARD_FILES] == sorted(dashboard["uid"] for dashboard in dashboards())


@each_dashboard
def test_it_can_be_provisioned(dashboard: dict[str, Any]) -> None:
    assert "id" not in dashboard, "Grafana's own number of it"
    assert "__inputs" not in dashboard, "only the browser asks for those"
    assert dashboard["schemaVersion"] >= 41
    assert dashboard["description"]


@each_dashboard
def test_every_panel_says_what_it_shows_in_which_unit(dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        assert panel["type"] in TYPES, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            # else a variable would do nothing
            assert 'job=~"$job"' in target["expr"] or "objective" in target["expr"], target["expr"]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert sorted(set(titles)) == sorted(titles)


@each_dashboard
def test_no_panel_lies_on_another(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)
    assert max(place["x"] + place["w"] for place in places) <= 24
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert sorted(set(numbers)) == numbers


@each_dashboard
def test_the_data_source_is_a_variable_everywhere(dashboard: dict[str, Any]) -> None:
    found: list[object] = []

    def collect(node: object) -> None:
        if isinstance(node, dict):
            if "datasource" in node:
                found.append(node["datasource"])
            for child in node.values():
                collect(child)
        elif isinstance(node, list):
            for child in node:
                collect(child)

    collect(dashboard)
    assert len(found) > len(panels(dashboard))
    assert [source for source in found if source != DATA_SOURCE] == []
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert variables[:3] == ["datasource", "job", "instance"]
    text = json.dumps(dashboard)
    assert [name for name in variables if f"${name}" not in text and f"${{{name}}}" not in text] == []


def test_the_provisioning_files_load_them_and_a_prometheus() -> None:
    provisioning = FOLDER / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert "uid" not in source
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sluice.yaml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")
