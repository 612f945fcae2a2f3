"""Names matched by names and globs; the most specific pattern wins."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# names come from clients: the memory of what a name matched is thrown away when it has grown to this
MAX_REMEMBERED: Final = 4096
_WILD: Final = re.compile(r"[*?]")


class PatternTable:
    """Patterns with `*` (any characters) and `?` (one), case-sensitive.

    An exact name beats a glob, more literal characters beat fewer, then fewer wildcards, then the order given.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        ordered = list(patterns)
        self._exact = frozenset(pattern for pattern in ordered if not _WILD.search(pattern))
        globs = [pattern for pattern in ordered if _WILD.search(pattern)]
        globs.sort(key=lambda pattern: (-len(_WILD.sub("", pattern)), len(_WILD.findall(pattern))))
        self._globs = [(re.compile(_regex(pattern), re.DOTALL), pattern) for pattern in globs]
        self._remembered: dict[str, str | None] = {}

    def match(self, name: str) -> str | None:
        """The most specific pattern that `name` matches, None if none does."""
        if name in self._exact:
            return name
        if name in self._remembered:
            return self._remembered[name]
        found = next((pattern for regex, pattern in self._globs if regex.fullmatch(name)), None)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[name] = found
        return found


def _regex(pattern: str) -> str:
    """Runs of wildcards are merged and made atomic where they can be, so that no name costs exponential time."""
    parts = re.split(r"(\*+|\?)", pattern)
    return "".join(".*?" if part.startswith("*") else "." if part == "?" else re.escape(part) for part in parts)
