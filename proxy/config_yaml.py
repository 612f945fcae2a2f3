"""YAML text into a tree that remembers its lines, and `${NAME}` in its scalars.

The tree is built from the parser's events, not by its recursive composer, so that depth and size are bounded before
they hurt. Nothing is constructed: what a scalar means is decided where the setting's type is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FILE_BYTES: Final = 2 * 1024 * 1024  # some 20,000 keys; more belong in the ledger
MAX_NODES: Final = 250_000  # a second of work; a file of this size full of settings has fewer
MAX_DEPTH: Final = 32  # settings go six deep

_LOADER: Final[type] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")


class YamlError(Exception):
    """The text is no YAML that Sluice reads; `line` counts from 1."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(slots=True)
class Scalar:
    """A single value as written. `plain` is False for quoted and block text, which is never a number or null."""

    line: int
    text: str
    plain: bool


@dataclass(slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping_:
    """A mapping, as pairs: a name may stand there twice, and need not be a text."""

    line: int
    items: list[tuple[Node, Node]] = field(default_factory=list)
