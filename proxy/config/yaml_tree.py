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
MAX_NODES: Final = 250_000  # about two seconds of work
MAX_DEPTH: Final = 32  # settings go six deep

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")


class YamlError(Exception):
    """The text is not YAML that Sluice reads; `line` counts from 1."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(slots=True)
class ScalarNode:
    """A single value as written. Quoted and block text is not `plain`: it is never a number or null."""

    line: int
    text: str
    plain: bool


@dataclass(slots=True)
class ListNode:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class MapNode:
    """A mapping as pairs, because a name may stand there twice and need not be text."""

    line: int
    items: list[tuple[Node, Node]] = field(default_factory=list)


Node = ScalarNode | ListNode | MapNode


def compose(text: str) -> Node | None:
    """The tree of the one document in `text`; None for an empty one. Raises `YamlError`."""
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes; where only the Python parser is there, a line is off for text beyond ASCII
        line = text.encode()[: error.position].count(b"\n") + 1
        raise YamlError("holds a control character", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(f"is not YAML: {said}", None if mark is None else mark.line + 1) from error
    return builder.root


class _Builder:
    """Folds parser events into nodes."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[tuple[ListNode | MapNode, str | None]] = []
        self._keys: list[Node | None] = []  # for each open mapping its name that still lacks a value
        self._anchors: dict[str, Node] = {}
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            _check_tag(event, line)
            self._add(ScalarNode(line, event.value, event.implicit[0] and event.tag is None), event.anchor)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            _check_tag(event, line)
            if len(self._open) == MAX_DEPTH:
                raise YamlError(f"is nested more than {MAX_DEPTH} levels deep", line)
            node = MapNode(line) if isinstance(event, yaml.MappingStartEvent) else ListNode(line)
            self._open.append((node, event.anchor))
            self._keys.append(None)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._keys.pop()
            self._add(*self._open.pop())
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:  # also inside what it names: a tree that holds itself has no end
                raise YamlError(f"uses *{event.anchor}, which nothing above it defines", line)
            self._add(self._anchors[event.anchor], None)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise YamlError("holds a second document", line)

    def _add(self, node: Node, anchor: str | None) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise YamlError(f"holds more than {MAX_NODES} values; keep keys in the ledger instead", node.line)
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        parent, _ = self._open[-1]
        if isinstance(parent, ListNode):
            parent.items.append(node)
        elif (key := self._keys[-1]) is None:
            self._keys[-1] = node
        else:
            parent.items.append((key, node))
            self._keys[-1] = None


def _check_tag(event: yaml.NodeEvent, line: int) -> None:
    tag = getattr(event, "tag", None)
    if tag is not None and not (tag == _STRING_TAG and isinstance(event, yaml.ScalarEvent)):
        raise YamlError(f"uses the tag {tag[:100]!r}, and settings have none", line)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace `${NAME}` and `${NAME:-default}`; the default also stands in for an empty variable, as in a shell.

    `$${` is a literal `${`; a `$` alone is itself. What a variable holds is not expanded again. Raises `ValueError`
    that names what is missing, never what a variable holds.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if match[0] == "$${":
            return "${"
        if name is None:
            raise ValueError("has a ${ that starts no ${NAME} or ${NAME:-default}; write $${ for the characters")
        found = environ.get(name)
        if found:
            return found
        if default is not None:
            return str(default)
        if found is None:
            raise ValueError(f"needs the environment variable {name}, which is not set")
        return ""

    return _VARIABLE.sub(value, text)


def escape(text: str) -> str:
    """`text` as it must be written to survive `expand` unchanged."""
    return text.replace("${", "$${")
