#!/usr/bin/env python3
"""Makes Grafana's dashboards of overview.yaml and keys.yaml: `python grafana/build.py`, or `--check` to compare.

Grafana's JSON repeats itself in every panel; the YAML says of each panel what it shows, and why. In its queries `@here`
stands for the matchers of job and instance. `quantiles` is a shorthand for one query a quantile.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent
DATA_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION: Final = 41  # of Grafana 12; newer ones migrate it
COLUMNS: Final = 24
# job and instance; a `$` of the YAML is Grafana's
HERE: Final = 'job=~"$job", instance=~"$instance"'
# where the values of a variable come from
VARIABLES: Final = {
    "job": "label_values(sluice_build_info, job)",
    "instance": 'label_values(sluice_build_info{job=~"$job"}, instance)',
    "key": f"label_values(sluice_requests_total{{{HERE}}}, key)",
    "model": f"label_values(sluice_requests_total{{{HERE}}}, model)",
    "upstream": f"label_values(sluice_upstream_attempts_total{{{HERE}}}, upstream)",
}
CALCULATED: Final = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
    "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
}
DRAWN: Final = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": False}
GREEN_TO_RED: Final = ("green", "orange", "red")


def dashboard(source: dict[str, Any]) -> dict[str, Any]:
    """A dashboard as Grafana provisions it."""
    return {
        "uid": source["uid"],
        "title": source["title"],
        "description": source["description"],
        "tags": ["sluice"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": source.get("from", "now-1h"), "to": "now"},
        "timezone": "",
        "links": [_link()],
        "annotations": {"list": [_restarts()]},
        "templating": {"list": _variables(source)},
        "panels": _panels(source["rows"]),
    }


def _link() -> dict[str, Any]:
    """To the other dashboards, with the same variables and times."""
    return {
        "type": "dashboards",
        "title": "Sluice",
        "tags": ["sluice"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }


def _restarts() -> dict[str, Any]:
    return {
        "name": "Restarts",
        "datasource": DATA_SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": f"changes(process_start_time_seconds{{{HERE}}}[2m]) > 0",
        "titleFormat": "Restart",
        "textFormat": "{{instance}}",
        "step": "1m",
    }


def _variables(source: dict[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}
    ]
    for name in source["variables"]:
        query = VARIABLES[name]
        made.append(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": DATA_SOURCE,
                "query": {"query": query, "refId": name},
                "definition": query,
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": ["All"], "value": ["$__all"]},
            }
        )
    for name, values in source.get("choices", {}).items():
        options = [{"text": str(value), "value": str(value), "selected": value == values[0]} for value in values]
        query = ",".join(map(str, values))
        made.append({"name": name, "type": "custom", "query": query, "options": options, "current": options[0]})
    return made


def _panels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows from top to bottom; panels from left to right, a new line where one does not fit."""
    made: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        made.append(_row(row["title"], len(made) + 1, y))
        x, y = 0, y + 1
        height = row.get("height", 8)
        for panel in row["panels"]:
            width = panel.get("width", 8)
            if x + width > COLUMNS:
                x, y = 0, y + height
            made.append(_panel(panel, len(made) + 1, {"x": x, "y": y, "w": width, "h": height}))
            x += width
        y += height
    return made


def _row(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(source: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    kind = source.get("type", "timeseries")
    panel = {
        "id": number,
        "type": kind,
        "title": source["title"],
        "description": source["description"],
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "targets": _targets(source, kind),
        "fieldConfig": {"defaults": _defaults(source, kind), "overrides": _overrides(source)},
        "options": _options(kind),
    }
    if kind == "table":
        panel["transformations"] = _joined(source)
    return panel


def _targets(source: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    queries = source.get("queries", {}) | dict(_quantiles(source.get("quantiles")))
    is_instant = kind in ("table", "bargauge")
    made = []  # no panel has more queries than there are letters
    for letter, (legend, expression) in zip(ascii_uppercase, queries.items(), strict=False):
        made.append(
            {
                "refId": letter,
                "datasource": DATA_SOURCE,
                "expr": " ".join(expression.split()).replace("@here", HERE),
                "legendFormat": legend,
                "instant": is_instant,
                "range": not is_instant,
                "format": {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series"),
            }
        )
    return made


def _quantiles(source: dict[str, Any] | None) -> list[tuple[str, str]]:
    """One query for each quantile of a histogram, by the labels it names."""
    if source is None:
        return []
    by = source.get("by", [])
    legend = " ".join(["p{}", *(f"{{{{{label}}}}}" for label in by)])
    matchers = ", ".join(["@here", *source.get("where", [])])
    rate = f"sum by ({', '.join([*by, 'le'])}) (rate({source['of']}_bucket{{{matchers}}}[$__rate_interval]))"
    return [
        (legend.replace("{}", f"{quantile * 100:g}", 1), f"histogram_quantile({quantile}, {rate})")
        for quantile in source["at"]
    ]


def _defaults(source: dict[str, Any], kind: str) -> dict[str, Any]:
    """How values are written and coloured."""
    defaults: dict[str, Any] = {"unit": source["unit"]}
    for name in ("min", "max", "decimals"):
        if name in source:
            defaults[name] = source[name]
    steps = [
        {"color": colour, "value": at}
        for colour, at in zip(GREEN_TO_RED, [None, *source.get("warn", [])], strict=False)
    ]
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if "states" in source:
        options = {
            str(value): {"text": text, "color": colour, "index": value}
            for value, (text, colour) in enumerate(zip(source["states"], GREEN_TO_RED, strict=True))
        }
        defaults["mappings"] = [{"type": "value", "options": options}]
    if kind == "timeseries":
        defaults["custom"] = DRAWN | {"stacking": {"mode": "normal" if source.get("stacked") else "none"}}
    return defaults


def _overrides(source: dict[str, Any]) -> list[dict[str, Any]]:
    """Units of single columns of a table."""
    return [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, unit in source.get("units", {}).items()
    ]


def _options(kind: str) -> dict[str, Any]:
    if kind == "timeseries":
        legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "max"]}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "heatmap":
        return {"calculate": False, "color": {"mode": "scheme", "scheme": "Oranges"}, "cellGap": 0}
    return CALCULATED.get(kind, {})


def _joined(source: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each set of labels, one column for each query, the greatest of the first column on top."""
    columns = list(source["queries"])
    names = {f"Value #{letter}": column for letter, column in zip(ascii_uppercase, columns, strict=False)}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names | {"Value": columns[0]}}},
        {"id": "sortBy", "options": {"sort": [{"field": columns[0], "desc": True}]}},
    ]


def main() -> int:
    """Write both dashboards; with `--check` only say whether they are as they would be written."""
    stale = []
    for source in (FOLDER / "overview.yaml", FOLDER / "keys.yaml"):
        made = dashboard(yaml.safe_load(source.read_text(encoding="utf-8")))
        target = FOLDER / "dashboards" / f"{made['uid']}.json"
        text = json.dumps(made, indent=2) + "\n"
        if "--check" not in sys.argv:
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            stale.append(target.name)
    if stale:
        sys.stderr.write(f"out of step with their YAML: {', '.join(stale)}; run python grafana/build.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
