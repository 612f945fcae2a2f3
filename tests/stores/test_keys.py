"""Keys in the database: secrets are not kept, changes are never missed, and what cannot be done is said."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa

from proxy.stores.database import open_database
from proxy.stores.keys import Changes, KeyProblem, KeyStore, StoredKey
from proxy.stores.tables import KEYS

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000


@pytest.fixture
def store(engine: sa.Engine) -> KeyStore:
    return KeyStore(engine)


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def make(store: KeyStore, key_id: str = "team-a") -> tuple[StoredKey, str]:
    return store.create(key_id, plan=None, limits=None, expires_ms=None, now_ms=NOW_MS)


def test_a_key_is_stored_as_it_was_made_but_for_its_secret(store: KeyStore, engine: sa.Engine) -> None:
    limits = {"requests": ["60/minute"], "concurrency": 2}
    key, secret = store.create("team-a", plan="standard", limits=limits, expires_ms=NOW_MS + 1, now_ms=NOW_MS)
    assert re.fullmatch(r"sk-sluice-[A-Za-z0-9_-]{43}", secret)
    assert store.all() == [key]
    assert key == StoredKey(
        "team-a", digest(secret), None, None, "standard", limits, NOW_MS + 1, None, NOW_MS, None, key.revision
    )
    with engine.connect() as connection:
        row = connection.execute(sa.select(KEYS)).one()
    assert secret not in repr(tuple(row))
    assert digest(secret).hex() not in repr(key)


def test_no_two_secrets_are_alike(store: KeyStore) -> None:
    secrets = [make(store, f"key-{number}")[1] for number in range(20)]
    secrets += [store.rotate("key-0", grace_ms=0, now_ms=NOW_MS)[1] for _ in range(20)]
    assert len(set(secrets)) == 40


def test_an_id_is_taken_for_ever(store: KeyStore) -> None:
    make(store)
    with pytest.raises(KeyProblem, match=r"^there is a key team-a already$"):
        make(store)
    store.revoke("team-a", NOW_MS)
    with pytest.raises(KeyProblem, match="it is revoked, and its id stays taken"):
        make(store)
    assert len(store.all()) == 1


def test_a_revoked_key_stays_and_can_be_changed_no_more(store: KeyStore) -> None:
    made, _ = make(store)
    store.revoke("team-a", NOW_MS + 5)
    (key,) = store.all()
    assert key == replace(made, revoked_ms=NOW_MS + 5, revision=made.revision + 1)
    with pytest.raises(KeyProblem, match="key team-a is revoked already"):
        store.revoke("team-a", NOW_MS + 6)
    with pytest.raises(KeyProblem, match="key team-a is revoked already"):
        store.rotate("team-a", grace_ms=0, now_ms=NOW_MS + 6)
    assert store.all() == [key]


@pytest.mark.parametrize("key_id", ["nobody", "TEAM-A", "team-a'--", ""])
def test_a_key_that_is_not_there_can_not_be_changed(store: KeyStore, key_id: str) -> None:
    made, _ = make(store)
    for change in (
        lambda: store.revoke(key_id, NOW_MS),
        lambda: store.rotate(key_id, grace_ms=0, now_ms=NOW_MS),
    ):
        with pytest.raises(KeyProblem, match="there is no key"):
            change()
    assert store.all() == [made]
    assert store.create("next", plan=None, limits=None, expires_ms=None, now_ms=NOW_MS)[0].revision == 2, (
        "what failed took no number"
    )


def test_the_old_secret_stays_for_the_grace_and_an_older_one_does_not(store: KeyStore) -> None:
    _, first = make(store)
    key, second = store.rotate("team-a", grace_ms=HOUR_MS, now_ms=NOW_MS)
    assert (key.digest, key.previous_digest) == (digest(second), digest(first))
    assert key.previous_until_ms == NOW_MS + HOUR_MS
    key, third = store.rotate("team-a", grace_ms=HOUR_MS, now_ms=NOW_MS + 1)
    assert (key.digest, key.previous_digest) == (digest(third), digest(second))
    assert key.previous_until_ms == NOW_MS + 1 + HOUR_MS
    key, fourth = store.rotate("team-a", grace_ms=0, now_ms=NOW_MS + 2)
    assert (key.digest, key.previous_digest, key.previous_until_ms) == (digest(fourth), None, None)
    assert store.all() == [key]


def test_an_expired_key_is_not_rotated(store: KeyStore) -> None:
    store.create("team-a", plan=None, limits=None, expires_ms=NOW_MS, now_ms=NOW_MS - 1)
    with pytest.raises(KeyProblem, match="has expired"):
        store.rotate("team-a", grace_ms=0, now_ms=NOW_MS)
    store.revoke("team-a", NOW_MS)


def test_changes_come_in_their_order_and_once(store: KeyStore) -> None:
    assert store.changed_since(None) == Changes([], [], None)
    made = [make(store, key_id)[0] for key_id in ("c", "a", "b")]
    changes = store.changed_since(None)
    assert (changes.keys, changes.anew) == (made, False)
    assert store.changed_since(changes.mark) == Changes([], [], changes.mark)
    store.revoke("a", NOW_MS)
    store.rotate("c", grace_ms=0, now_ms=NOW_MS)
    later = store.changed_since(changes.mark)
    assert (later.anew, later.more) == (False, False)
    assert [(key.id, key.revoked_ms) for key in later.keys] == [("a", NOW_MS), ("c", None)]


def test_a_mark_tells_no_secret(store: KeyStore) -> None:
    _, secret = make(store)
    mark = repr(store.changed_since(None).mark)
    assert secret not in mark
    assert digest(secret).hex() not in mark


def test_the_use_of_a_key_is_no_change_of_it(store: KeyStore) -> None:
    made, _ = make(store)
    used = {f"key-{number}": NOW_MS for number in range(1200)}
    store.note_used({**used, "team-a": NOW_MS + 7, "zzz": NOW_MS})
    store.note_used({"team-a": NOW_MS})  # another worker, with news that are older
    store.note_used({})
    assert store.all() == [replace(made, last_used_ms=NOW_MS + 7)]
    mark = store.changed_since(None).mark
    store.note_used({"team-a": NOW_MS + 8})
    assert store.changed_since(mark) == Changes([], [], mark)


@pytest.mark.parametrize("spoilt", [{"secret_sha256": "not hex"}, {"limits": "{"}, {"limits": "[1]"}])
def test_a_row_that_somebody_spoilt_stops_no_other(store: KeyStore, engine: sa.Engine, spoilt: dict[str, str]) -> None:
    make(store, "bad")
    good, _ = make(store, "good")
    with engine.begin() as connection:
        connection.execute(sa.update(KEYS).where(KEYS.c.id == "bad").values(spoilt))
    found = store.changed_since(None)
    assert (found.keys, found.unreadable) == ([good], ["bad"])
    with pytest.raises(KeyProblem, match="the row of key bad cannot be read"):
        store.all()
    store.revoke("bad", NOW_MS)


_CREATOR = """
import sys
from proxy.stores.database import open_database
from proxy.stores.keys import KeyStore
store = KeyStore(open_database(sys.argv[1]))
sys.stdin.readline()
for number in range(25):
    store.create(f"{sys.argv[2]}-{number}", plan=None, limits=None, expires_ms=None, now_ms=1)
"""


def test_a_poller_misses_nothing_whoever_writes_at_once(store: KeyStore, ledger_url: str) -> None:
    """Three processes create keys as fast as they can, and each number is seen once, in its order."""
    writers = [
        subprocess.Popen([sys.executable, "-c", _CREATOR, ledger_url, name], stdin=subprocess.PIPE, text=True)
        for name in ("x", "y", "z")
    ]
    stop = threading.Event()
    seen: list[tuple[int, str]] = []

    def poll() -> None:
        mark, last_look = None, False
        while not last_look:
            last_look = stop.is_set()
            changes = store.changed_since(mark)
            seen.extend((key.revision, key.id) for key in changes.keys)
            mark = changes.mark

    poller = threading.Thread(target=poll)
    poller.start()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    codes = [writer.wait() for writer in writers]
    stop.set()
    poller.join()
    assert codes == [0, 0, 0]
    assert sorted(key_id for _, key_id in seen) == sorted(f"{name}-{n}" for name in "xyz" for n in range(25))
    assert [number for number, _ in seen] == sorted({number for number, _ in seen})


def test_no_change_becomes_visible_before_one_with_a_smaller_number(
    store: KeyStore, engine: sa.Engine, ledger_url: str
) -> None:
    """The first change is held right before its commit, while another begins; a poller looks in between."""
    committing, may_commit = threading.Event(), threading.Event()
    slow, quick = open_database(ledger_url), open_database(ledger_url)

    @sa.event.listens_for(slow, "commit")
    def _hold(_: sa.Connection) -> None:
        committing.set()
        assert may_commit.wait(4.0)

    first = threading.Thread(target=make, args=(KeyStore(slow), "first"))
    second = threading.Thread(target=make, args=(KeyStore(quick), "second"))
    first.start()
    assert committing.wait(4.0)
    second.start()
    second.join(0.2)  # long enough for one that does not wait for the first to be done
    between = store.changed_since(None)
    may_commit.set()
    first.join()
    second.join()
    after = store.changed_since(between.mark)
    slow.dispose()
    quick.dispose()
    assert between.keys == []
    assert [key.id for key in after.keys] == ["first", "second"]


def test_more_keys_than_are_read_at_once(store: KeyStore, engine: sa.Engine) -> None:
    rows = [
        {"id": f"key-{number}", "secret_sha256": f"{number:064x}", "created_ms": 1, "revision": number}
        for number in range(1, 2101)
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(KEYS), rows)
    read, mark, more = 0, None, True
    while more:
        changes = store.changed_since(mark)
        read, mark, more = read + len(changes.keys), changes.mark, changes.more
        assert len(changes.keys) <= 1000
    assert mark is not None
    assert (read, mark.revision) == (2100, 2100)
