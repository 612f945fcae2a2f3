"""Keys that are changed, found and listed in pages: what is not given stays, and nothing is listed twice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from proxy.stores.keys import Changes, KeyProblem, KeyStore, NoSuchKey, StoredKey
from proxy.stores.tables import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_MS = 1_800_000_000_000


@pytest.fixture
def store(engine: sa.Engine) -> KeyStore:
    return KeyStore(engine)


def make(store: KeyStore, key_id: str) -> StoredKey:
    return store.create(key_id, plan="small", limits={"concurrency": 1}, expires_ms=NOW_MS + 9, now_ms=NOW_MS)[0]


def asks(store: KeyStore) -> list[Callable[[], StoredKey]]:
    return [lambda: store.change("a", NOW_MS, plan=None), lambda: store.find("a")]


def test_what_is_given_changes_and_nothing_else(store: KeyStore) -> None:
    made = make(store, "a")
    mark = store.changed_since(None).mark
    changed = store.change("a", NOW_MS, plan=None)
    assert changed == replace(made, plan=None, revision=2)
    assert store.change("a", NOW_MS, limits={"tokens": ["1/day"]}, expires_ms=None) == replace(
        changed, limits={"tokens": ["1/day"]}, expires_ms=None, revision=3
    )
    last = store.change("a", NOW_MS, limits=None)
    assert last.limits is None
    assert store.find("a") == last
    found = store.changed_since(mark)
    assert found.keys == [last]
    assert store.changed_since(found.mark) == Changes([], [], found.mark)


def test_a_key_that_is_not_there_or_revoked_cannot_be_changed(store: KeyStore) -> None:
    for ask in asks(store):
        with pytest.raises(NoSuchKey, match=r"^there is no key a in the ledger$"):
            ask()
    make(store, "a")
    store.revoke("a", NOW_MS)
    with pytest.raises(KeyProblem, match="revoked already"):
        store.change("a", NOW_MS, plan=None)
    assert store.find("a").revoked_ms == NOW_MS


def test_a_spoilt_row_is_not_changed_and_can_be_mended(store: KeyStore, engine: sa.Engine) -> None:
    make(store, "a")
    with engine.begin() as connection:
        connection.execute(sa.update(KEYS).values(limits="{"))
    for ask in asks(store):
        with pytest.raises(KeyProblem, match="cannot be read: somebody else has changed it"):
            ask()
    assert store.page("", 10, with_revoked=False) == ([], ["a"], False)
    with engine.connect() as connection:
        assert connection.execute(sa.select(KEYS.c.plan, KEYS.c.revision)).one() == ("small", 1)
    assert store.change("a", NOW_MS, limits=None).plan == "small"


def test_pages_hold_every_key_once(store: KeyStore) -> None:
    ids = ["B", "a", "a/b", "a0", "b", "c"]
    made = {key_id: make(store, key_id) for key_id in ids}
    store.revoke("c", NOW_MS)
    found: list[str] = []
    more, after = True, ""
    while more:
        keys, unreadable, more = store.page(after, 2, with_revoked=False)
        assert unreadable == []
        assert [made[key.id] for key in keys] == keys
        found += [key.id for key in keys]
        after = found[-1]
    assert sorted(found) == ids[:-1]
    assert [key.id for key in store.page("", 10, with_revoked=True).keys] == [*found, "c"]
