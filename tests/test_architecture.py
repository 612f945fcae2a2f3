"""The rules of the house that a reviewer should not have to check: floors, sizes, docstrings, tasks, pins."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "proxy").rglob("*.py"))
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_NINTH_DECILE_LINES = 30

every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))


def tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def functions(source: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function, docstring included."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{source.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def starts_tasks(source: Path) -> list[int]:
    names = {"create_task", "ensure_future", "TaskGroup"}
    return [node.lineno for node in ast.walk(tree(source)) if isinstance(node, ast.Attribute) and node.attr in names]


def swallows(source: Path) -> list[int]:
    """Handlers that do nothing at all: whoever means it says `contextlib.suppress` of something narrow."""
    return [
        node.lineno
        for node in ast.walk(tree(source))
        if isinstance(node, ast.ExceptHandler)
        and all(isinstance(line, ast.Pass) or is_ellipsis(line) for line in node.body)
    ]


def is_ellipsis(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and line.value.value is ...


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> list[tuple[str, str]]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    split = [line.split("==") for line in lines]
    assert all(len(pin) == 2 for pin in split), "constraints.txt: one name==version a line, no addresses, no comments"
    return [(normal(name), version) for name, version in split]


def test_the_rules_see_the_sources() -> None:
    assert ROOT / "proxy" / "core" / "errors.py" in SOURCES
    assert len(SOURCES) > 30


@every_source
def test_a_module_says_what_it_is_for(source: Path) -> None:
    assert ast.get_docstring(tree(source)), "a module opens with a docstring"


@every_source
def test_a_file_can_be_read_in_one_go(source: Path) -> None:
    assert len(source.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


def test_functions_are_short() -> None:
    lengths = dict(function for source in SOURCES for function in functions(source))
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= MAX_NINTH_DECILE_LINES


@every_source
def test_only_the_tasks_module_starts_tasks(source: Path) -> None:
    if source != ROOT / "proxy" / "tasks.py":
        assert starts_tasks(source) == []


@every_source
def test_no_exception_is_swallowed_in_silence(source: Path) -> None:
    assert swallows(source) == []


def test_the_rules_would_notice(tmp_path: Path) -> None:
    """Each rule above is shown what it forbids: a test that cannot fail proves nothing."""
    bad = tmp_path / "bad.py"
    bad.write_text(
        "async def f(loop):\n"
        "    loop.create_task(f(loop))\n"
        "    try:\n        f()\n    except OSError:\n        pass\n"
        "    try:\n        f()\n    except OSError:\n        ...\n"
    )
    assert starts_tasks(bad) == [2]
    assert swallows(bad) == [5, 9]
    assert list(functions(bad)) == [("bad.py:1 f", 10)]
    assert ast.get_docstring(tree(bad)) is None


def test_every_file_of_the_core_has_its_own_tests() -> None:
    modules = {source.stem for source in (ROOT / "proxy" / "core").glob("*.py")} - {"__init__"}
    tested = {test.stem.removeprefix("test_") for test in (ROOT / "tests" / "core").glob("test_*.py")}
    assert modules - tested == set()


def test_the_floors_hold() -> None:
    # in a process of its own: it reconfigures logging, and with that silences the loggers of other tests
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
    assert "0 broken" in linted.stdout


def test_everything_installed_is_pinned_and_only_by_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {normal(re.split(r"[\s;<>=!~\[]", requirement)[0]) for requirement in asked}
    pinned = dict(pins())
    assert names - pinned.keys() == set()
    assert "sluice-proxy" not in pinned
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pinned.values())


def test_each_pin_is_there_once() -> None:
    names = [name for name, _ in pins()]
    assert sorted(set(names)) == sorted(names)
