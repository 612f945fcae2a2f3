"""What differs between two configurations, by the names of settings and never by their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct, structs

from proxy.config.problems import dotted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.problems import Path
    from proxy.config.settings import Config

# what was made when the process began: sockets, the database, the store, the log, the way to the collector
_FIXED: Final[tuple[tuple[str, ...], ...]] = (
    ("server", "host"),
    ("server", "port"),
    ("server", "workers"),
    ("server", "max_connections"),
    ("ops",),
    ("store",),
    ("ledger",),
    ("log",),
    ("tracing",),
)


class Changes(NamedTuple):
    """Settings that differ, as `models.gpt-4o.price`: those `in_force` from now on, and those that `need_restart`."""

    in_force: list[str]
    need_restart: list[str]


class ReloadError(Exception):
    """The new configuration cannot be used, and nothing has changed; `problems` say why, each in a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _fixed(before: Config, after: Config) -> tuple[tuple[str, ...], ...]:
    # a certificate can take another's place while a listener listens, but TLS neither begins nor ends then
    starts_tls = (before.server.tls.certificate is None) != (after.server.tls.certificate is None)
    return (*_FIXED, ("server", "tls")) if starts_tls else _FIXED


def in_force(running: Config, after: Config) -> Config:
    """What of `after` can be served without a restart, over what is `running`: also a new worker is given no more."""
    for path in _fixed(running, after):
        if len(path) == 1:
            after = structs.replace(after, **{path[0]: getattr(running, path[0])})
        else:
            section = getattr(after, path[0])
            kept = {path[1]: getattr(getattr(running, path[0]), path[1])}
            after = structs.replace(after, **{path[0]: structs.replace(section, **kept)})
    return after


def changes(before: Config, after: Config) -> Changes:
    """What differs; members that came or went are named whole, and keys by their ids."""
    found = Changes([], [])
    fixed_paths = _fixed(before, after)
    for path in _differences((), before, after):
        is_fixed = any(path[: len(fixed)] == fixed for fixed in fixed_paths)
        (found.need_restart if is_fixed else found.in_force).append(dotted(path))
    return found


def _differences(path: Path, before: Any, after: Any) -> Iterator[Path]:
    if before == after:
        return
    if isinstance(before, Struct) and isinstance(after, Struct):
        for name in before.__struct_fields__:
            yield from _differences((*path, name), getattr(before, name), getattr(after, name))
    elif path == ("keys",):
        by_id = ({key.id: key for key in keys} for keys in (before, after))
        yield from _differences_of_members(path, *by_id)
    elif isinstance(before, dict):
        yield from _differences_of_members(path, before, after)
    else:
        yield path


def _differences_of_members(path: Path, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Path]:
    for name in dict.fromkeys((*before, *after)):
        if name in before and name in after:
            yield from _differences((*path, name), before[name], after[name])
        else:
            yield (*path, name)
