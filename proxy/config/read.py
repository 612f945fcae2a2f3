"""The YAML tree into the structs of `config`, node by node, so that every mistake is found and none hides another.

A value that is wrong is noted and its default stands in, so that reading and checking can go on.
"""

from __future__ import annotations

import difflib
import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import inspect

from proxy.config.values import duration_text, parse_duration
from proxy.config.yaml_tree import MAX_NODES, ListNode, MapNode, Node, ScalarNode, YamlError, expand

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.config.problems import Findings, Path

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,17})")
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NEVER_QUOTED: Final = (inspect.BoolType, inspect.IntType, inspect.FloatType)
_INVALID: Final = object()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name most like `name`, to be put behind a message; empty if none is."""
    found = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


class Reader:
    """Reads nodes as what the structs say they are; `environ` fills in `${NAME}`."""

    def __init__(self, environ: Mapping[str, str], findings: Findings) -> None:
        self._environ = environ
        self._findings = findings
        self._visited = 0

    def read(self, node: Node, kind: inspect.Type, path: Path, line: int | None = None) -> Any:
        """The value of `node`, or what stands in for it. Raises `YamlError` when aliases multiply beyond measure."""
        value = self._value(node, kind, path, line)
        return _stand_in(kind) if value is _INVALID else value

    def _value(self, node: Node, kind: inspect.Type, path: Path, line: int | None = None) -> Any:
        self._visited += 1
        if self._visited > MAX_NODES:
            raise YamlError(f"holds more than {MAX_NODES} values when its aliases are followed", node.line)
        self._findings.lines[path] = line or node.line
        bare, optional, extra = unwrap(kind)
        if optional and isinstance(node, ScalarNode) and node.plain and node.text in _NULLS:
            return None
        if isinstance(bare, inspect.StructType):
            return self._struct(node, bare, path)
        if isinstance(bare, inspect.DictType):
            return self._map(node, bare, path)
        if isinstance(bare, inspect.VarTupleType):
            return self._list(node, bare, path)
        if not isinstance(node, ScalarNode):
            self._findings.add(path, _mismatch(bare, extra, _describe(node)), node.line)
            return _INVALID
        try:
            return self._scalar(node, bare, extra, optional=optional)
        except ValueError as error:
            self._findings.add(path, str(error), node.line)
            return _INVALID

    def _scalar(self, node: ScalarNode, kind: inspect.Type, extra: dict[str, str], *, optional: bool) -> Any:
        text = expand(node.text, self._environ)
        expanded = text != node.text
        bare = node.plain or expanded  # quoted text is no number or null, unless a variable brought it
        if optional and (text == "" or (bare and text in _NULLS) or ("unit" in extra and text.lower() == "off")):
            return None
        if isinstance(kind, inspect.StrType | inspect.CustomType):
            if node.plain and not expanded and text in _NULLS:
                raise ValueError(_mismatch(kind, extra, "nothing"))
            return _text(text, kind, extra)
        shown = f"{node.text[:60]!a}" if node.text else "nothing"  # the variable as written, not what it holds
        if not bare and "unit" not in extra and isinstance(kind, _NEVER_QUOTED):
            raise ValueError(_mismatch(kind, extra, f"the text {shown}"))
        return _word(text, kind, extra, shown)

    def _pairs(self, node: Node, path: Path) -> dict[str, tuple[Node, int]] | None:
        """The settings of a mapping by name, with the lines of their names. None, and a problem, if it is no mapping.

        Nothing at all, as where every line of a section is commented out, is an empty mapping.
        """
        if isinstance(node, ScalarNode) and node.plain and node.text in _NULLS:
            return {}
        if not isinstance(node, MapNode):
            self._findings.add(path, f"must be a mapping, not {_describe(node)}", node.line)
            return None
        found: dict[str, tuple[Node, int]] = {}
        for key, value in node.items:
            if not isinstance(key, ScalarNode):
                self._findings.add((*path, "?"), f"must be the name of a setting, not {_describe(key)}", key.line)
            elif key.text in found:
                first = found[key.text][1]
                self._findings.add((*path, key.text), f"is set twice, first on line {first}", key.line)
            else:
                found[key.text] = (value, key.line)
        return found

    def _struct(self, node: Node, kind: inspect.StructType, path: Path) -> Any:
        pairs = self._pairs(node, path)
        if pairs is None:
            return _INVALID
        known = {field.name: field for field in kind.fields}
        values = {}
        for name, (child, line) in pairs.items():
            if name in known:
                value = self._value(child, known[name].type, (*path, name), line)
                if value is not _INVALID:
                    values[name] = value
            else:
                hint = nearest(name, known.keys() - pairs.keys()) or nearest(name, known)
                if name == "<<":
                    hint = "; merge keys are not read, alias a whole mapping instead"
                self._findings.add((*path, name), f"is no setting{hint}", line)
        for name, field in known.items():
            if field.required and name not in values:
                values[name] = _stand_in(field.type)
                if name not in pairs:
                    self._findings.add((*path, name), "is required", self._findings.lines[path])
        return kind.cls(**values)

    def _map(self, node: Node, kind: inspect.DictType, path: Path) -> Any:
        pairs = self._pairs(node, path)
        if pairs is None:
            return _INVALID
        name_kind, _, extra = unwrap(kind.key_type)
        for name, (_, line) in pairs.items():
            try:
                _text(name, name_kind, extra)
            except ValueError as error:
                self._findings.add((*path, name), f"as a name {error}", line)
        return {name: self.read(child, kind.value_type, (*path, name), line) for name, (child, line) in pairs.items()}

    def _list(self, node: Node, kind: inspect.VarTupleType, path: Path) -> Any:
        if isinstance(node, ScalarNode) and node.plain and node.text in _NULLS:
            return ()
        if not isinstance(node, ListNode):
            self._findings.add(path, f"must be a list, not {_describe(node)}", node.line)
            return _INVALID
        return tuple(self.read(item, kind.item_type, (*path, index)) for index, item in enumerate(node.items))


def unwrap(kind: inspect.Type) -> tuple[inspect.Type, bool, dict[str, str]]:
    """The type without its wrappers, whether null may stand in its place, and its `extra` metadata."""
    optional, extra = False, {}
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.Metadata):
            extra.update(kind.extra or {})
            kind = kind.type
        else:
            optional = True
            kind = next(member for member in kind.types if not isinstance(member, inspect.NoneType))
    return kind, optional, extra


def _stand_in(kind: inspect.Type) -> Any:
    """What takes the place of a value that is missing or wrong, so that the rest can be checked."""
    bare, _, _ = unwrap(kind)
    if isinstance(bare, inspect.StructType):
        required = {field.name: _stand_in(field.type) for field in bare.fields if field.required}
        return bare.cls(**required)
    return bare.cls() if isinstance(bare, inspect.CustomType) else ""


def _describe(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return "nothing" if node.plain and node.text in _NULLS else "a single value"
    return "a list" if isinstance(node, ListNode) else "a mapping"


def _expected(kind: inspect.Type, extra: dict[str, str]) -> str:
    if "unit" in extra:
        return "be a duration (250ms, 5s, 2m, 1h, 1d or a number of seconds)"
    match kind:
        case inspect.BoolType():
            return "be true or false"
        case inspect.IntType():
            return "be a whole number"
        case inspect.FloatType():
            return "be a number"
        case inspect.LiteralType():
            return "be one of " + ", ".join(map(str, kind.values))
        case inspect.DateTimeType():
            return "be a time with its zone, such as 2027-01-01T00:00:00Z"
        case _:
            return extra.get("must", "be text")


def _mismatch(kind: inspect.Type, extra: dict[str, str], found: str) -> str:
    return f"must {_expected(kind, extra)}, not {found}"


def _text(text: str, kind: inspect.Type, extra: dict[str, str]) -> Any:
    """A text or secret; its value is in no message."""
    if _CONTROL.search(text):
        raise ValueError("holds a line break or another control character")
    if isinstance(kind, inspect.CustomType):
        return kind.cls(text)
    if isinstance(kind, inspect.StrType):
        if kind.pattern is not None and re.search(kind.pattern, text) is None:
            raise ValueError(f"must {_expected(kind, extra)}")
        if not (kind.min_length or 0) <= len(text) <= (kind.max_length or len(text)):
            raise ValueError("must not be empty" if not text else f"must be at most {kind.max_length} characters long")
    return text


def _word(text: str, kind: inspect.Type, extra: dict[str, str], shown: str) -> Any:
    """A truth value, number, duration, choice or time from its notation."""
    match kind:
        case inspect.BoolType() if text.lower() in _TRUTHS:
            return _TRUTHS[text.lower()]
        case inspect.IntType() if _INTEGER.fullmatch(text):
            return _within(int(text), kind, shown)
        case inspect.FloatType() if "unit" in extra:
            return _duration(text, kind, shown)
        case inspect.FloatType() if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return _within(float(text), kind, shown)
        case inspect.DateTimeType():
            return _time(text, shown)
        case inspect.LiteralType() if text in kind.values:
            return text
        case inspect.LiteralType():
            raise ValueError(_mismatch(kind, extra, shown) + nearest(text, map(str, kind.values)))
        case _:
            raise ValueError(_mismatch(kind, extra, shown))


def _within(value: float, kind: inspect.IntType | inspect.FloatType, shown: str, unit: str = "") -> float:
    if kind.ge is not None and value < kind.ge:
        raise ValueError(f"must be at least {kind.ge:g}, not {shown}")
    if kind.gt is not None and value <= kind.gt:
        raise ValueError(f"must be more than {kind.gt:g}, not {shown}")
    if kind.le is not None and value > kind.le:
        raise ValueError(f"must be at most {duration_text(kind.le) if unit else kind.le}, not {shown}")
    return value


def _duration(text: str, kind: inspect.FloatType, shown: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise ValueError(_mismatch(kind, {"unit": "s"}, shown)) from None
    return _within(seconds, kind, shown, unit="s")


def _time(text: str, shown: str) -> datetime:
    message = _mismatch(inspect.DateTimeType(), {}, shown)
    try:
        value = datetime.fromisoformat(text)
        value.timestamp()  # a year at the edge of the calendar overflows here, not while a key is checked
    except (ValueError, OverflowError):
        raise ValueError(message) from None
    if value.tzinfo is None:
        raise ValueError(message)
    return value
