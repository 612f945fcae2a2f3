"""The ledger's database: an engine from a URL, and the migrations of its tables.

SQLite is driven in autocommit with transactions of our own: the standard library's implicit ones begin as readers, and
a reader that turns writer meets errors that no waiting cures. Secrets in a URL never appear in a message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from proxy.stores.base import LedgerProblem
from proxy.stores.migrations import REVISIONS
from proxy.stores.tables import METADATA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import URL, Connection, Dialect, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import ConnectionPoolEntry

PATIENCE_S: Final = 5.0
_LOOK_S: Final = 0.01
# any number no other program locks in the same database
_MIGRATION_LOCK: Final = 7_355_608_001
# as Alembic makes it
_VERSION: Final = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
_READING: Final = "sluice_reading"
_FILE: Final = "sluice_file"
# what a server says when it ends a connection by itself: it is stopped, it crashed, or nothing was asked for too long
_ENDED_BY_SERVER: Final = frozenset({"57P01", "57P02", "57P05"})


def open_database(url: str, *, patience_s: float | None = PATIENCE_S) -> Engine:
    """The engine for `sqlite:///FILE` or `postgresql://…`; nothing is connected yet.

    A statement of PostgreSQL that takes longer than `patience_s` seconds fails; None lets reports take their time.
    Raises `LedgerProblem` for a URL that cannot be meant or a driver that is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise LedgerProblem("ledger.url is not a URL: expected sqlite:///FILE or postgresql://…") from None
    kind = parsed.drivername
    if kind == "sqlite":
        return _sqlite(parsed)
    if kind in {"postgresql", "postgresql+psycopg", "postgres"}:
        return _postgres(parsed.set(drivername="postgresql+psycopg"), patience_s)
    raise LedgerProblem(f"ledger.url: {kind} is not supported: expected sqlite:///FILE or postgresql://…")


def reading(engine: Engine) -> Engine:
    """The same engine for transactions that only read: on SQLite they neither wait for writers nor stop them."""
    return engine.execution_options(**{_READING: True})


@contextlib.contextmanager
def own_cursor(engine: Engine) -> Iterator[Any]:
    """A driver's cursor in autocommit, on a connection that belongs to the caller alone."""
    pooled = engine.raw_connection()
    connection: Any = pooled.driver_connection
    pooled.detach()
    try:
        if engine.dialect.name == "postgresql":
            connection.autocommit = True
        yield connection.cursor()
    finally:
        connection.close()


def is_broken(cursor: Any, error: Exception) -> bool:
    """Whether `error` is that a server is connected no more, so that a new connection may do better.

    Not so for a connection that was given up because nothing came. A file has no connection.
    """
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return getattr(cursor.connection, "broken", False) or getattr(error, "sqlstate", None) in _ENDED_BY_SERVER


def check_file(engine: Engine, cursor: Any) -> None:
    """See that what `cursor` writes is in the file that others will read. Nothing to see for PostgreSQL.

    Raises `sqlite3.OperationalError` when the file was removed or replaced: SQLite itself would go on writing where
    nobody will ever look. Then the log beside the file is emptied, as far as it was the old file's: SQLite would take
    it for the new one's and spoil that (sqlite.org/howtocorrupt.html, section 1.4).
    """
    file: _File | None = engine.get_execution_options().get(_FILE)
    if file is None:
        return
    try:
        file.check()
    except sqlite3.OperationalError:
        engine.dispose()  # its connections, too, lead to the file that was
        with contextlib.suppress(sqlite3.Error):  # that the file has gone is the news, and what can be helped is not
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        raise


def migrate(engine: Engine) -> None:
    """Bring the tables up to date. Any number of processes may do so at once: one works, the others wait.

    Raises `LedgerProblem` when the database was written by a newer Sluice, and SQLAlchemy's errors when it cannot be
    reached.
    """
    with reading(engine).connect() as connection:
        if _is_current(connection):
            return
        is_new = _is_new_file(connection)
    if not is_new:
        import_module("alembic.command")  # 180 ms; before the lock, so that others do not wait for it
    with engine.connect() as connection:
        connection.detach()
        with connection.begin():
            _lock(connection)
            if _is_new_file(connection):
                _create(connection)
            elif not _is_current(connection):
                _upgrade(connection)


def _is_new_file(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite" and not sa.inspect(connection).get_table_names()


def _create(connection: Connection) -> None:
    """Make the tables as they are today, and note that no step is missing: a new file needs no history.

    So a first start does without Alembic, which takes 180 ms and 7 MiB.
    """
    METADATA.create_all(connection)
    _VERSION.create(connection)
    connection.execute(_VERSION.insert().values(version_num=REVISIONS[-1]))


def _upgrade(connection: Connection) -> None:
    command, config = import_module("alembic.command"), import_module("alembic.config").Config()
    config.set_main_option("script_location", "proxy.stores:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_current(connection: Connection) -> bool:
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    if revision is not None and revision not in REVISIONS:
        raise LedgerProblem(
            f"the ledger was written by a newer Sluice (its tables are at {revision}, this one knows {REVISIONS[-1]})"
        )
    return bool(revision == REVISIONS[-1])


def _lock(connection: Connection) -> None:
    """Keep other processes from migrating until the transaction ends; on SQLite its beginning did."""
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.dbapi_connection
        driver.patience_s = None
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def _postgres(url: URL, patience_s: float | None) -> Engine:
    try:
        postgres = import_module("proxy.stores.postgres")
    except ImportError:
        raise LedgerProblem(
            "ledger.url asks for PostgreSQL, whose driver is missing: install the extra `postgres`"
        ) from None
    # a connection may have died in the pool: asking costs a round trip, of the few transactions that go by the pool
    engine = sa.create_engine(url, pool_pre_ping=True, use_native_hstore=False)

    @sa.event.listens_for(engine, "do_connect")
    def _connect(_dialect: object, _entry: object, _arguments: object, parameters: dict[str, Any]) -> object:
        return postgres.connect(parameters, patience_s)

    return engine


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise LedgerProblem(
            "ledger.url: a ledger in memory is seen by its own proxy alone; name a file, as in sqlite:///sluice.db"
        )
    file = _File(url.database)
    connect_args = {"timeout": PATIENCE_S, "isolation_level": None}
    engine = sa.create_engine(url, connect_args=connect_args, execution_options={_FILE: file})

    @sa.event.listens_for(engine, "do_connect")
    def _find(*_: object) -> None:
        file.find()

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        _set_up_sqlite(connection)  # type: ignore[arg-type]  # it is what the dialect connects

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        only_reads = connection.get_execution_options().get(_READING)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    return engine


class _File:
    """The file of an engine: made by the first connection if it is not there, and the same one ever after."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None

    def find(self) -> None:
        """Before each connection. The first raises `OSError` for a file that cannot be used; others as `check`."""
        if self._identity is None:
            self._make()
            self._identity = self._look()
        self.check()

    def check(self) -> None:
        """Raises `sqlite3.OperationalError` when the path leads to another file by now, or to none."""
        found = self._look()
        if found is None:
            raise sqlite3.OperationalError("the ledger's file was removed: put it back, or restart to begin a new one")
        if found != self._identity:
            raise sqlite3.OperationalError("the ledger's file was replaced: restart to use the one that is there now")

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - asked at every commit: a Path costs as much again
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _make(self) -> None:
        # SQLite gives the files beside it (-wal, -shm) the same mode; an existing file keeps its own. That must not be
        # opened here: closing it again would release the locks of every connection in this process (fcntl(2)), and
        # another process would take the write-ahead log away from under them.
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if Path(self._path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path) from None
            if not os.access(self._path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._path) from None


def _set_up_sqlite(connection: sqlite3.Connection) -> None:
    """WAL lets readers and a writer at the file at once; FULL makes a commit survive a power cut, too."""
    deadline_s = time.monotonic() + PATIENCE_S
    cursor = connection.cursor()
    while cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except connection.OperationalError:
            # several processes open a new file at once: the busy timeout does not hold for this statement
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_LOOK_S)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def insert_of(dialect: Dialect) -> Any:
    """The database's own INSERT, which knows ON CONFLICT. Of other databases nothing is imported: it would be 2 MiB."""
    return import_module(f"sqlalchemy.dialects.{dialect.name}").insert


def reason_of(error: SQLAlchemyError) -> str:
    """The first line of what the driver says: not SQLAlchemy's text, which quotes statements, and digests in them."""
    said = error.orig if isinstance(error, DBAPIError) else None
    return (str(said or "").strip().splitlines() or [type(said or error).__name__])[0]


def describe(error: Exception) -> str:
    """What went wrong, for logs: without what a database may quote, as hosts, users and values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(cause, LedgerProblem):
        return str(cause)
    # SQLite's messages are constants
    name = type(cause).__name__
    return f"{name}: {cause}" if type(cause).__module__ == "sqlite3" else name
