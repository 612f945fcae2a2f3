"""Structs whose fields hold what nobody may see: credentials, prompts, answers (promise 9).

msgspec gives each struct a `__rich_repr__` with all its fields, which rich prefers to `__repr__`: in tracebacks that
show variables, for one. Who says by itself what may be shown takes `as_repr` for it, so that this is all there is.
"""

from __future__ import annotations

import msgspec


def as_repr(struct: object) -> list[tuple[str, object]]:
    """For rich, the fields to show: what `repr` says."""
    return [("repr", repr(struct))]


class Discreet(msgspec.Struct, eq=False):
    """A struct that shows nothing of its fields. It is made in C: an `__init__` of ten lines takes twice as long."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    __rich_repr__ = as_repr
