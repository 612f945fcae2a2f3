"""What the tests of deploy/ share: where it is, YAML without surprises, and the real `sluice check-config`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"


def documents(file: Path) -> list[Any]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


def document(file: Path) -> Any:
    """The one document of a YAML file."""
    (only,) = documents(file)
    return only


def tool(name: str) -> str:
    """A command that a wheel of the group `dev` brings along."""
    return str(Path(sys.executable).with_name(name))


def run(*command: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller judges how it ended."""
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=LONG_S, check=False, **how
    )


def check_config(file: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """The configuration in effect, as the command prints it; fails where it finds a mistake."""
    checked = run(sys.executable, "-m", "proxy", "check-config", file, cwd=ROOT, env=dict(variables))
    assert checked.returncode == 0, checked.stderr
    in_effect: dict[str, Any] = yaml.safe_load(checked.stdout)
    return in_effect


def seconds(duration: str | float) -> float:
    """A duration as `check-config`, Compose, systemd and HAProxy write it."""
    if isinstance(duration, int | float):
        return float(duration)
    number = duration.rstrip("msh")
    return float(number) * {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[duration[len(number) :]]


def stopping_s(in_effect: Mapping[str, Any]) -> float:
    """How long a stop takes at most: notice, drain, and the last words of what the drain cuts."""
    return seconds(in_effect["shutdown"]["notice"]) + seconds(in_effect["shutdown"]["drain"]) + 2.0


def pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Every member of every mapping in a document, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield name, value
            yield from pairs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pairs(value)
