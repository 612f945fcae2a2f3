"""Names matched by patterns, where the most specific pattern wins: for the models of routes and plans.

`*` stands for any characters, `?` for one; everything else stands for itself, in its own case. An exact name beats a
pattern; then more literal characters win over fewer, fewer wildcards over more, and earlier over later.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_REMEMBERED_NAMES: Final = 1024  # names come from strangers: what is remembered must not grow with what they think of
_REMEMBERED_NAME_CHARACTERS: Final = 256
_Name = TypeVar("_Name", bound="str | bytes")
_Found = TypeVar("_Found")


class Remembered(dict[_Name, _Found]):
    """What `find` says of names, of those asked for lately without asking it again: `remembered[name]`."""

    def __init__(self, find: Callable[[_Name], _Found]) -> None:
        self._find = find

    def __missing__(self, name: _Name) -> _Found:
        found = self._find(name)
        if len(name) <= _REMEMBERED_NAME_CHARACTERS:
            if len(self) >= _REMEMBERED_NAMES:
                self.clear()
            self[name] = found
        return found


class PatternTable:
    """Patterns, compiled once. `match` gives the most specific that a name matches as a whole, None if none does."""

    def __init__(self, patterns: Iterable[str]) -> None:
        given = list(dict.fromkeys(patterns))
        self._exact = frozenset(pattern for pattern in given if not is_pattern(pattern))
        globs = sorted((pattern for pattern in given if pattern not in self._exact), key=_specificity)
        self._globs = [(pattern, _compile(pattern)) for pattern in globs]
        self.match: Callable[[str], str | None] = Remembered(self._match).__getitem__

    def __repr__(self) -> str:
        return f"PatternTable({[*sorted(self._exact), *(pattern for pattern, _ in self._globs)]})"

    def _match(self, name: str) -> str | None:
        if name in self._exact:
            return name
        for pattern, compiled in self._globs:
            if compiled.match(name) is not None:
                return pattern
        return None


def is_pattern(text: str) -> bool:
    """Whether `text` stands for other names than itself: it holds a wildcard."""
    return _wildcards(text) > 0


def _wildcards(pattern: str) -> int:
    return pattern.count("*") + pattern.count("?")


def _specificity(pattern: str) -> tuple[int, int]:
    """Sorts the most specific first; the sort is stable, so equals stay in the order they were given."""
    return _wildcards(pattern) - len(pattern), _wildcards(pattern)


def _compile(pattern: str) -> re.Pattern[str]:
    """A regular expression for a glob.

    `fnmatch` writes every `*` but the last as an atomic group, so that no name makes the search backtrack without
    end. Its character classes are switched off: a bracket stands for itself.
    """
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
