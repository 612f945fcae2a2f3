"""Find the values of a few members in a JSON text that flows by, in constant memory.

Answers may be tens of megabytes (images as base64, embeddings) of which some hundred bytes matter. Where these stand
decides: a client can have JSON of its own echoed (the tools of a response), so a name alone proves nothing.
"""

from __future__ import annotations

import json
import re
from typing import Final, cast

# What is kept of a value; one that is longer is not among the values. A usage object has some 600 bytes.
MAX_VALUE_BYTES: Final = 8192

_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OPENING: Final = b"{["
_REST: Final = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_FLAT: Final = rb'[^"{}\[\]]*+(?:"' + _REST + rb'"[^"{}\[\]]*+)*+'

# These run over bytes without stepping back, at the speed of C. A string's end, from inside it:
_STRING_REST: Final = re.compile(_REST, re.DOTALL)
# Within a container that does not matter, over what is complete and over containers that hold no other:
_IN_CONTAINER: Final = re.compile(_FLAT + rb"(?:[{\[]" + _FLAT + rb"[}\]]" + _FLAT + rb")*+", re.DOTALL)
_BRACKETS: Final = re.compile(rb"[{\[]++|[}\]]++")
# Within an object that matters, and before the outermost value:
_TOKEN: Final = re.compile(rb'["{}\[\],:]')
_BEGINNING: Final = re.compile(rb'["{\[]')

Path = tuple[str, ...]


class JsonWalk:
    """Keeps the values at `paths`, each a tuple of member names from the outermost object on.

    What precedes the first bracket is skipped, and so are line ends and field names between lines of an event's data
    (WHATWG HTML section 9.2.6). The text is not validated: of a broken one anything may be among the values.

    `values`: the text of each value that is complete, by its path; of a name given twice the last.
    `ended`: the outermost value is complete, what follows is ignored.
    """

    __slots__ = (
        "_escaped",
        "_in_string",
        "_kept",
        "_mark",
        "_member",
        "_name_due",
        "_nested",
        "_opened",
        "_path",
        "_through",
        "_wanted",
        "ended",
        "values",
    )

    def __init__(self, *paths: Path) -> None:
        self.values: dict[Path, bytes] = {}
        self.ended = False
        self._wanted = frozenset(paths)
        self._through = frozenset(path[:depth] for path in paths for depth in range(1, len(path)))
        self._opened = False
        self._path: Path | None = None  # of the object whose members are read; None in an outermost array
        self._member: Path | None = None  # whose value comes or is being read
        self._name_due = False  # the next string is a member's name
        self._nested = 0  # how deep we are in a container that does not matter
        self._in_string = False
        self._escaped = False  # the next byte of the string follows a backslash
        self._kept: bytearray | None = None  # of the name or value being read, if it matters and is not too long
        self._mark = 0  # where in the fed bytes that goes on

    def feed(self, data: bytes) -> None:
        """Walk over the next bytes. Never raises."""
        at = self._mark = 0
        while at < len(data) and not self.ended:
            if self._in_string:
                at = self._over_string(data, at)
            elif self._nested:
                at = self._over_container(data, at)
            else:
                at = self._over_token(data, at)
        self._keep(data, len(data))

    def loaded(self, path: Path) -> object:
        """What the value at `path` says, None if there is none or it cannot be read."""
        try:
            return cast("object", json.loads(self.values.get(path, b"null")))
        except (ValueError, RecursionError):
            return None

    def _over_string(self, data: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            at += 1
        end = data.find(b'"', at)
        if data.find(b"\\", at, len(data) if end < 0 else end) >= 0:
            end = _past(_STRING_REST, data, at)
        if end < 0 or end == len(data):
            return len(data)
        if data[end] == _BACKSLASH:  # the last byte, else it would have been taken together with the next
            self._escaped = True
            return end + 1
        self._in_string = False
        if self._name_due:
            self._end_name(data, end)
        return end + 1

    def _over_container(self, data: bytes, at: int) -> int:
        end = _past(_IN_CONTAINER, data, at)
        if end == len(data):
            return end
        if data[end] == _QUOTE:
            self._in_string = True
            return end + 1
        count = _past(_BRACKETS, data, end) - end
        if data[end] in _OPENING:
            self._nested += count
            return end + count
        count = min(count, self._nested)
        self._nested -= count
        self.ended = not self._nested and self._path is None
        return end + count

    def _over_token(self, data: bytes, at: int) -> int:
        token = (_TOKEN if self._opened else _BEGINNING).search(data, at)
        if token is None:
            return len(data)
        at = token.start()
        if data[at] == _QUOTE:
            self._in_string = True
            if self._name_due:
                self._begin_keeping(at)
            self.ended = not self._opened  # the outermost value is a string
        elif data[at] in _OPENING:
            self._open(is_object=data[at] == _OPENING[0])
        elif data[at] == _COLON:
            if self._member in self._wanted:
                self._begin_keeping(at)
        else:
            self._end_value(data, at)
            self._name_due = data[at] == _COMMA
            if not self._name_due:
                self._close()
        return at + 1

    def _open(self, *, is_object: bool) -> None:
        if is_object and (not self._opened or self._member in self._through):
            self._path = self._member or ()
            self._member = None
            self._name_due = True
        else:
            self._nested = 1
        self._opened = True

    def _close(self) -> None:
        if self._path:
            self._path = self._path[:-1]
        else:
            self.ended = True

    def _end_name(self, data: bytes, end: int) -> None:
        self._keep(data, end)
        name = None if self._kept is None else _decoded(bytes(self._kept))
        self._kept = None
        self._name_due = False
        if name is None or self._path is None:
            return
        member = self._member = (*self._path, name)
        # as in every parser: of a name given twice the last counts, with all that is in it
        for path in [path for path in self.values if path[: len(member)] == member]:
            del self.values[path]

    def _end_value(self, data: bytes, end: int) -> None:
        self._keep(data, end)
        if self._kept is not None and self._member is not None:
            self.values[self._member] = bytes(self._kept).strip()
        self._kept = self._member = None

    def _begin_keeping(self, at: int) -> None:
        self._kept = bytearray()
        self._mark = at + 1

    def _keep(self, data: bytes, end: int) -> None:
        if self._kept is None:
            return
        if len(self._kept) + end - self._mark > MAX_VALUE_BYTES:
            self._kept = None
        else:
            self._kept += data[self._mark : end]


def _past(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    match = pattern.match(data, at)
    return at if match is None else match.end()


def _decoded(name: bytes) -> str | None:
    if b"\\" not in name:
        return name.decode(errors="replace")
    try:
        return str(json.loads(b'"' + name + b'"'))
    except ValueError:
        return None
