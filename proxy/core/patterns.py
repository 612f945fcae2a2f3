"""Names matched by patterns, where the most specific pattern wins: for the models of routes and plans.

`*` stands for any characters, `?` for one; everything else stands for itself, in its own case. An exact name beats a
pattern; then more literal characters win over fewer, fewer wildcards over more, and earlier over later.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_CACHED_NAMES: Final = 1024  # names come from clients: the cache must not grow with what they think of
_CACHED_NAME_CHARACTERS: Final = 256


class PatternTable:
    """Patterns, compiled once. Exact names are found in O(1), others through a bounded cache."""

    def __init__(self, patterns: Iterable[str]) -> None:
        given = list(dict.fromkeys(patterns))
        self._exact = frozenset(pattern for pattern in given if not is_pattern(pattern))
        globs = sorted((pattern for pattern in given if pattern not in self._exact), key=_specificity)
        self._globs = [(pattern, _compile(pattern)) for pattern in globs]
        self._remembered = functools.lru_cache(_CACHED_NAMES)(self._match_globs)

    def __repr__(self) -> str:
        return f"PatternTable({[*sorted(self._exact), *(pattern for pattern, _ in self._globs)]})"

    def match(self, name: str) -> str | None:
        """The most specific pattern that `name` matches as a whole; None if there is none."""
        if name in self._exact:
            return name
        if len(name) > _CACHED_NAME_CHARACTERS:
            return self._match_globs(name)
        return self._remembered(name)

    def _match_globs(self, name: str) -> str | None:
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
