"""What is wrong with a configuration, and where: all of it at once, each with its path and line."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_PROBLEMS: Final = 100  # nobody reads more, and a hostile file could have as many as it has values

Path = tuple[str | int, ...]  # where in the file a value stands: ("keys", 1, "secret")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a configuration: where, and what.

    `path` is dotted (`keys[1].secret`), empty for the file as a whole; `line` counts from 1.
    """

    path: str
    line: int | None
    message: str
    file: str | None = None

    def __str__(self) -> str:
        place = [self.file or "configuration"] if self.line is None else [self.file or "configuration", str(self.line)]
        where = ":".join(place)
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` has all that is wrong with it, ordered by line."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def dotted(path: Path) -> str:
    """A path as it is written in messages; names that hold dots or spaces are quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        plain = re.fullmatch(r"[^\s.\[\]\"]{1,100}", step) is not None and step.isprintable()
        text += ("." if text else "") + (step if plain else ascii(step[:100]).replace("'", '"'))
    return text


class TooManyProblemsError(Exception):
    """There are `MAX_PROBLEMS` already: looking on tells nothing new."""


class Findings:
    """Collects problems while a file is read and checked, and knows the line of every setting in it."""

    def __init__(self, file: str) -> None:
        self.lines: dict[Path, int] = {}
        self._file = file
        self._problems: list[Problem] = []
        self._failed: set[Path] = set()
        self._above_failed: set[Path] = set()

    def add(self, path: Path, message: str, line: int | None = None) -> None:
        """Note a problem; without `line` it is that of the setting or of what holds it.

        Raises `TooManyProblemsError`.
        """
        if len(self._problems) == MAX_PROBLEMS:
            raise TooManyProblemsError
        for end in range(len(path), -1, -1):
            line = line or self.lines.get(path[:end])
            self._above_failed.add(path[:end])
        self._failed.add(path)
        self._problems.append(Problem(path=dotted(path), line=line, message=message, file=self._file))

    def expect(self, condition: object, path: Path, message: str) -> None:
        """Refuse what is at `path` unless `condition` holds."""
        if not condition:
            self.refuse(path, message)

    def refuse(self, path: Path, message: str) -> None:
        """Note a problem, unless the value at `path` is only a stand-in for one that was wrong already."""
        if not self.spoiled(path):
            self.add(path, message)

    def spoiled(self, path: Path) -> bool:
        """Whether a problem was found at, below or above `path`."""
        return path in self._above_failed or any(path[:end] in self._failed for end in range(len(path)))

    def conclude(self, last: Problem | None = None) -> None:
        """Raise `ConfigError` if anything was found, ordered by line; `last` is what ended the search early."""
        problems = sorted(self._problems, key=lambda problem: problem.line or 0)
        if last is not None:
            problems.append(last)
        if problems:
            raise ConfigError(problems)
