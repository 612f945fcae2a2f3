"""Keys made at run time: created, rotated, revoked, and read by the workers as they change.

Secrets are returned once and stored as SHA-256: they hold 256 random bits, so nothing slower is needed to keep them
from being guessed. A revoked key stays in its table: exchanges refer to its id, which must not become another's.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from proxy.stores.database import reading
from proxy.stores.tables import KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PREFIX: Final = "sk-sluice-"
_SECRET_BYTES: Final = 32
# rows locked at once while `last_used_ms` is written: a revocation may have to wait for them
_NOTED_AT_ONCE: Final = 500
# rows read at once: what the event loop takes over in a few milliseconds. The limit also keeps PostgreSQL on the index
# when it knows nothing of the table yet
_READ_AT_ONCE: Final = 1_000

# The first statement of every change. It takes the row's lock in PostgreSQL and the file's in SQLite, and both hold it
# until they commit: numbers become visible in their order, so whoever has read up to one has missed none.
_NEXT_REVISION: Final = sa.text(
    "INSERT INTO key_revision (id, revision) VALUES (1, 1) "
    "ON CONFLICT (id) DO UPDATE SET revision = key_revision.revision + 1 RETURNING revision"
)
_NOTE_USED: Final = (
    sa.update(KEYS)
    .where(KEYS.c.id == sa.bindparam("used_id"))
    .where(sa.or_(KEYS.c.last_used_ms.is_(None), KEYS.c.last_used_ms < sa.bindparam("used_ms")))
    .values(last_used_ms=sa.bindparam("used_ms"))
)


class KeyProblem(Exception):  # noqa: N818  not an error of ours: what was asked for cannot be done
    """What was asked of a key cannot be done; the message is for people."""


class NoSuchKey(KeyProblem):
    """There is none of that id."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A row of `keys`. Times are UNIX time in milliseconds; digests are SHA-256 of secrets.

    `previous_digest` is that of the secret before the last rotation, good until `previous_until_ms`. `limits` have the
    form of the configuration's `limits`; None: the plan's.
    """

    id: str
    digest: bytes = field(repr=False)
    previous_digest: bytes | None = field(repr=False)
    previous_until_ms: int | None
    plan: str | None
    limits: dict[str, Any] | None
    expires_ms: int | None
    revoked_ms: int | None
    created_ms: int
    last_used_ms: int | None
    revision: int


class Mark(NamedTuple):
    """How far a reader has come: the number of a change, and what its key's row held then, as a hash.

    Every change makes a row that no other history has: a new secret, or the moment of a revocation or another change. A
    database that holds the row under the number has all that was read before it.
    """

    revision: int
    row_sha256: str


class Changes(NamedTuple):
    """What happened to keys up to `mark`; `more` if that is not all there is to read. None: there are no keys.

    `anew`: what was known before is void, and all keys come again, with these as the first.
    `unreadable` are ids of rows that somebody else has spoilt. Nobody can tell what they allow, so they allow nothing.
    """

    keys: list[StoredKey]
    unreadable: list[str]
    mark: Mark | None
    anew: bool = False
    more: bool = False


class Page(NamedTuple):
    """Some keys by id; `more` if others follow. `unreadable` as in `Changes`."""

    keys: list[StoredKey]
    unreadable: list[str]
    more: bool


class KeyStore:
    """Keys in the ledger's database. Its methods block; they raise `SQLAlchemyError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reading = reading(engine)

    def create(
        self, key_id: str, *, plan: str | None, limits: dict[str, Any] | None, expires_ms: int | None, now_ms: int
    ) -> tuple[StoredKey, str]:
        """A new key and its secret, which is nowhere else. Raises `KeyProblem` for an id that was ever taken."""
        secret, digest = _new_secret()
        with self._engine.begin() as connection:
            revision = connection.execute(_NEXT_REVISION).scalar_one()
            taken = connection.execute(sa.select(KEYS.c.revoked_ms).where(KEYS.c.id == key_id)).first()
            if taken is not None:
                revoked = "" if taken.revoked_ms is None else "; it is revoked, and its id stays taken"
                raise KeyProblem(f"there is a key {key_id} already{revoked}")
            row = {
                "id": key_id,
                "secret_sha256": digest,
                "plan": plan,
                "limits": None if limits is None else msgspec.json.encode(limits).decode(),
                "expires_ms": expires_ms,
                "created_ms": now_ms,
                "revision": revision,
            }
            return _stored(connection.execute(sa.insert(KEYS).values(row).returning(KEYS)).one()), secret

    def change(
        self,
        key_id: str,
        now_ms: int,
        *,
        plan: str | UnsetType | None = UNSET,
        limits: dict[str, Any] | UnsetType | None = UNSET,
        expires_ms: int | UnsetType | None = UNSET,
    ) -> StoredKey:
        """Change what a key may do; what is not given stays. Raises `KeyProblem` where there is none to change."""
        written = limits if limits is None or limits is UNSET else msgspec.json.encode(limits).decode()
        given = {"plan": plan, "limits": written, "expires_ms": expires_ms}
        changed = {name: value for name, value in given.items() if value is not UNSET}
        with self._engine.begin() as connection:
            revision = connection.execute(_NEXT_REVISION).scalar_one()
            _live(connection, key_id)
            return _updated(connection, key_id, {**changed, "changed_ms": now_ms, "revision": revision})

    def revoke(self, key_id: str, now_ms: int) -> None:
        """End a key, with all its secrets. Raises `KeyProblem` where there is none to end."""
        with self._engine.begin() as connection:
            revision = connection.execute(_NEXT_REVISION).scalar_one()
            _live(connection, key_id)
            changed = {"revoked_ms": now_ms, "revision": revision}
            connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(changed))

    def rotate(self, key_id: str, *, grace_ms: int, now_ms: int) -> tuple[StoredKey, str]:
        """A new secret for a key; the one before stays good for `grace_ms`, and any older one ends at once.

        Raises `KeyProblem` for a key that is unknown, revoked or expired.
        """
        secret, digest = _new_secret()
        with self._engine.begin() as connection:
            revision = connection.execute(_NEXT_REVISION).scalar_one()
            row = _live(connection, key_id)
            if row.expires_ms is not None and row.expires_ms <= now_ms:
                raise KeyProblem(f"key {key_id} has expired: a new secret would not be taken; create another key")
            changed = {
                "secret_sha256": digest,
                "previous_sha256": row.secret_sha256 if grace_ms > 0 else None,
                "previous_until_ms": now_ms + grace_ms if grace_ms > 0 else None,
                "revision": revision,
            }
            return _updated(connection, key_id, changed), secret

    def all(self) -> list[StoredKey]:
        """Every key there ever was, by id. Raises `KeyProblem` for a row that cannot be read."""
        with self._reading.connect() as connection:
            rows = connection.execute(sa.select(KEYS).order_by(KEYS.c.id)).all()
        return [_readable(row) for row in rows]

    def find(self, key_id: str) -> StoredKey:
        """One key, revoked or not. Raises `KeyProblem` where there is none, or its row cannot be read."""
        with self._reading.connect() as connection:
            row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id)).first()
        if row is None:
            raise NoSuchKey(f"there is no key {key_id} in the ledger")
        return _readable(row)

    def page(self, after: str, most: int, *, with_revoked: bool) -> Page:
        """The first `most` keys whose ids come after `after`, in the database's own order."""
        wanted = sa.select(KEYS).where(KEYS.c.id > after).order_by(KEYS.c.id).limit(most + 1)
        if not with_revoked:
            wanted = wanted.where(KEYS.c.revoked_ms.is_(None))
        with self._reading.connect() as connection:
            rows = connection.execute(wanted).all()
        return Page(*_read(rows[:most]), more=len(rows) > most)

    def changed_since(self, mark: Mark | None) -> Changes:
        """The first keys changed after `mark`, in the order of their changes; None: of all. One indexed query.

        The row of the mark is asked for again. If it is not there as it was, all keys are read anew: the key was
        changed once more, or the database was restored from a backup, and its numbers say nothing about what was read.
        """
        revision = 0 if mark is None else mark.revision
        with self._reading.connect() as connection:
            rows = _rows_from(connection, revision)
            anew = mark is not None and mark not in map(_mark_of, rows)
            if anew:
                rows = _rows_from(connection, 0)
        keys, unreadable = _read([row for row in rows if anew or row.revision > revision])
        return Changes(keys, unreadable, _mark_of(rows[-1]) if rows else None, anew, len(rows) == _READ_AT_ONCE)

    def note_used(self, used: Mapping[str, int]) -> None:
        """Write when keys were last used: UNIX time in milliseconds by id. Later times that are there stay."""
        # in one order everywhere: two workers that lock the same rows would else wait for each other
        rows = [{"used_id": key_id, "used_ms": used[key_id]} for key_id in sorted(used)]
        for start in range(0, len(rows), _NOTED_AT_ONCE):
            with self._engine.begin() as connection:
                connection.execute(_NOTE_USED, rows[start : start + _NOTED_AT_ONCE])


def _new_secret() -> tuple[str, str]:
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def _live(connection: sa.Connection, key_id: str) -> sa.Row[Any]:
    """The row of a key that is not revoked."""
    row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id)).first()
    if row is None:
        raise NoSuchKey(f"there is no key {key_id} in the ledger")
    if row.revoked_ms is not None:
        raise KeyProblem(f"key {key_id} is revoked already")
    return row


def _updated(connection: sa.Connection, key_id: str, changed: dict[str, Any]) -> StoredKey:
    update = sa.update(KEYS).where(KEYS.c.id == key_id).values(changed).returning(KEYS)
    return _readable(connection.execute(update).one())


def _rows_from(connection: sa.Connection, revision: int) -> Sequence[sa.Row[Any]]:
    first = sa.select(KEYS).where(KEYS.c.revision >= revision).order_by(KEYS.c.revision).limit(_READ_AT_ONCE)
    return connection.execute(first).all()


def _mark_of(row: sa.Row[Any]) -> Mark:
    said = f"{row.id} {row.secret_sha256} {row.revoked_ms} {row.changed_ms}"
    return Mark(row.revision, hashlib.sha256(said.encode()).hexdigest())


def _read(rows: Sequence[sa.Row[Any]]) -> tuple[list[StoredKey], list[str]]:
    """The keys in `rows`, and the ids of rows that hold none."""
    keys, unreadable = [], []
    for row in rows:
        try:
            keys.append(_stored(row))
        except ValueError:
            unreadable.append(row.id)
    return keys, unreadable


def _readable(row: sa.Row[Any]) -> StoredKey:
    """Raises `KeyProblem` for a row that holds no key."""
    try:
        return _stored(row)
    except ValueError:
        raise KeyProblem(f"the row of key {row.id} cannot be read: somebody else has changed it") from None


def _stored(row: sa.Row[Any]) -> StoredKey:
    """Raises `ValueError` for a row that holds no key."""
    return StoredKey(
        id=row.id,
        digest=bytes.fromhex(row.secret_sha256),
        previous_digest=None if row.previous_sha256 is None else bytes.fromhex(row.previous_sha256),
        previous_until_ms=row.previous_until_ms,
        plan=row.plan,
        limits=None if row.limits is None else msgspec.json.decode(row.limits, type=dict[str, Any]),
        expires_ms=row.expires_ms,
        revoked_ms=row.revoked_ms,
        created_ms=row.created_ms,
        last_used_ms=row.last_used_ms,
        revision=row.revision,
    )
