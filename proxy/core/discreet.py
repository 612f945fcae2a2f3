"""Structs whose fields hold what nobody may see: credentials, prompts, answers (promise 9).

msgspec gives each struct a `__rich_repr__` with all its fields, which rich prefers to `__repr__`: in tracebacks that
show variables, for one. Who says by itself what may be shown takes `as_repr` for it, so that this is all there is.
"""

from __future__ import annotations


def as_repr(struct: object) -> list[tuple[str, object]]:
    """For rich, the fields to show: what `repr` says."""
    return [("repr", repr(struct))]
