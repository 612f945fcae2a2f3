"""What grafana/ holds, read for tests: dashboards, rules, and the queries in them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

FOLDER: Final = Path(__file__).parents[2] / "grafana"
RULE_FILES: Final = sorted((FOLDER / "rules").glob("*.yaml"))
ALERT_TESTS: Final = sorted((Path(__file__).parent / "alerts").glob("*.yaml"))
DASHBOARD_FILES: Final = sorted((FOLDER / "dashboards").glob("*.json"))

# what Grafana puts in place of its variables when nothing is chosen
_FILLED: Final = {
    "$__rate_interval": "5s",
    "$__range": "1m",
    "$__interval": "5s",
    "$top": "5",
    **dict.fromkeys(("$job", "$instance", "$key", "$model", "$upstream"), ".*"),
}
_SELECTOR: Final = re.compile(r"\b(?:up|(?:sluice|process|job)[\w]*[_:][\w:]*)\b(?:\{[^}]*\})?")
_LABEL_VALUES: Final = re.compile(r"label_values\((.*), (\w+)\)")


class Query(NamedTuple):
    """An expression and where it stands. One that says when something is wrong has no data while all is well."""

    place: str
    expression: str
    is_condition: bool = False


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in DASHBOARD_FILES]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Without rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@functools.cache
def _rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(file.read_text()) for file in RULE_FILES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in _rules() if "alert" in rule]


def recorded() -> list[dict[str, Any]]:
    return [rule for rule in _rules() if "record" in rule]


def queries() -> list[Query]:
    """Every expression: of panels, variables, annotations, recording rules and alerts."""
    found = [Query(f"rule {rule['record']}", rule["expr"]) for rule in recorded()]
    found += [Query(f"alert {rule['alert']}", rule["expr"], is_condition=True) for rule in alerts()]
    for dashboard in dashboards():
        uid = dashboard["uid"]
        for panel in panels(dashboard):
            found += [Query(f"{uid}, {panel['title']}", filled(target["expr"])) for target in panel["targets"]]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found.append(Query(f"{uid}, ${variable['name']}", _values_of(variable["definition"])))
        for annotation in dashboard["annotations"]["list"]:
            found.append(Query(f"{uid}, {annotation['name']}", filled(annotation["expr"]), is_condition=True))
    return found


def filled(expression: str) -> str:
    """A panel's expression as Grafana sends it. Longer names first: `$__range` begins another."""
    for name in sorted(_FILLED, key=len, reverse=True):
        expression = expression.replace(name, _FILLED[name])
    return expression


def _values_of(definition: str) -> str:
    asked = _LABEL_VALUES.fullmatch(filled(definition))
    assert asked is not None, definition
    return f"count by ({asked[2]}) ({asked[1]})"


def selectors(expression: str) -> list[str]:
    """The series an expression is made of, each with its matchers."""
    without_comments = re.sub(r"#.*", "", expression)
    return _SELECTOR.findall(without_comments)


def names(expression: str) -> set[str]:
    """The metrics an expression is made of."""
    return {selector.partition("{")[0] for selector in selectors(expression)}
