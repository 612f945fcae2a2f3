"""Keys as a ledger would hold them, for tests without a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.patterns import PatternTable
from proxy.phases.authenticate import Plan, digest_of
from proxy.stores.keys import Changes, Mark, StoredKey

if TYPE_CHECKING:
    from collections.abc import Mapping

STANDARD = Plan("standard", PatternTable(["*"]), PatternTable(["inference"]))
UNLIMITED = Plan(None, PatternTable(["*"]), PatternTable(["inference"]))
PLANS = {"standard": STANDARD, None: UNLIMITED}


def stored(
    key_id: str,
    secret: bytes,
    *,
    plan: str | None = None,
    previous: bytes | None = None,
    previous_until_ms: int | None = None,
    expires_ms: int | None = None,
    revoked_ms: int | None = None,
    revision: int = 1,
) -> StoredKey:
    return StoredKey(
        key_id,
        digest_of(secret),
        None if previous is None else digest_of(previous),
        previous_until_ms,
        plan,
        None,
        expires_ms,
        revoked_ms,
        created_ms=0,
        last_used_ms=None,
        revision=revision,
    )


def changes(*keys: StoredKey, anew: bool = False, more: bool = False, unreadable: tuple[str, ...] = ()) -> Changes:
    last = max((key.revision for key in keys), default=0)
    return Changes(list(keys), list(unreadable), Mark(last, ""), anew, more)


class HeldKeys:
    """A source of keys that a test holds in its hands; it gives `at_once` of them.

    While `broken` it raises `OSError`, as a lost database would; while `unwritable` only for what is written.
    """

    def __init__(self, at_once: int = 10) -> None:
        self.at_once = at_once
        self.keys: dict[str, StoredKey] = {}
        self.used: list[Mapping[str, int]] = []
        self.broken = False
        self.unwritable = False
        self.asked: list[int] = []

    def put(self, key: StoredKey) -> None:
        self.keys[key.id] = key

    def changed_since(self, mark: Mark | None) -> Changes:
        revision = mark.revision if mark else 0
        self.asked.append(revision)
        if self.broken:
            raise OSError("the database has gone")
        changed = sorted((key for key in self.keys.values() if key.revision > revision), key=lambda key: key.revision)
        given = changed[: self.at_once]
        last = given[-1].revision if given else revision
        return Changes(given, [], Mark(last, ""), more=len(changed) > len(given))

    def note_used(self, used: Mapping[str, int]) -> None:
        if self.broken or self.unwritable:
            raise OSError("the database has gone")
        self.used.append(dict(used))
