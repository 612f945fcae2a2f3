"""Keys in a database that was restored from a backup: its numbers come again, and no reader may be misled by them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from proxy.stores.keys import Changes, KeyStore, StoredKey
from proxy.stores.tables import KEY_REVISION, KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_MS = 1_800_000_000_000


@pytest.fixture
def store(engine: sa.Engine) -> KeyStore:
    return KeyStore(engine)


def make(store: KeyStore, key_id: str) -> StoredKey:
    return store.create(key_id, plan=None, limits=None, expires_ms=None, now_ms=NOW_MS)[0]


def test_a_key_that_is_changed_twice_in_a_row_has_all_read_anew(store: KeyStore) -> None:
    """Its row cannot tell whether what was read before is still there; nothing is missed, and it is over at once."""
    other, made = make(store, "other"), make(store, "team-a")
    mark = store.changed_since(None).mark
    store.revoke("team-a", NOW_MS)
    changes = store.changed_since(mark)
    assert (changes.anew, changes.keys) == (True, [other, replace(made, revoked_ms=NOW_MS, revision=3)])
    assert store.changed_since(changes.mark) == Changes([], [], changes.mark)


def backup(engine: sa.Engine) -> Callable[[], None]:
    """What brings the keys back as they are now, with their numbers."""
    tables = (KEYS, KEY_REVISION)
    with engine.connect() as connection:
        kept = [[dict(row) for row in connection.execute(sa.select(table)).mappings()] for table in tables]

    def restore() -> None:
        with engine.begin() as connection:
            for table, rows in zip(tables, kept, strict=True):
                connection.execute(sa.delete(table))
                if rows:
                    connection.execute(sa.insert(table), rows)

    return restore


@pytest.mark.parametrize("changes_after", [0, 1, 2, 3, 4, 5])
def test_a_restored_database_is_read_anew_however_far_it_has_come(
    store: KeyStore, engine: sa.Engine, changes_after: int
) -> None:
    """Its numbers come again, and pass those that were read; what they are of is something else."""
    for key_id in ("a", "b", "c"):
        make(store, key_id)
    restore = backup(engine)
    make(store, "lost")
    store.revoke("c", NOW_MS)
    read = store.changed_since(None)
    restore()
    changes: list[Callable[[], object]] = [
        lambda: store.revoke("a", NOW_MS + 1),
        lambda: store.revoke("c", NOW_MS + 1),
        lambda: store.rotate("b", grace_ms=0, now_ms=NOW_MS + 1),
        lambda: store.change("b", NOW_MS + 1, plan="standard"),
        lambda: store.rotate("b", grace_ms=0, now_ms=NOW_MS + 1),
    ]
    for change in changes[:changes_after]:
        change()
    found = store.changed_since(read.mark)
    assert found.anew
    assert sorted(found.keys, key=lambda key: key.id) == store.all()
    assert store.changed_since(found.mark) == Changes([], [], found.mark)


def test_a_database_that_was_emptied_has_no_keys(store: KeyStore, engine: sa.Engine) -> None:
    restore = backup(engine)
    make(store, "a")
    mark = store.changed_since(None).mark
    restore()
    assert store.changed_since(mark) == Changes([], [], None, anew=True)


def test_the_same_change_in_another_history_is_not_taken_for_the_one_that_was_read(
    store: KeyStore, engine: sa.Engine
) -> None:
    """The row is as it was but for the moment of the change: a key that was made meanwhile must not stay good."""
    make(store, "a")
    restore = backup(engine)
    make(store, "lost")
    store.change("a", NOW_MS, plan="standard")
    read = store.changed_since(None)
    restore()
    made = make(store, "other")
    again = store.change("a", NOW_MS + 1, plan="standard")
    found = store.changed_since(read.mark)
    assert found.anew
    assert found.keys == [made, again]
