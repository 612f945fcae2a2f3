"""The ledger's database: an engine from a URL, and the migrations of its tables.

SQLite is driven in autocommit with transactions of our own: the standard library's implicit ones begin as readers, and
a reader that turns writer meets errors that no waiting cures. Secrets in a URL never appear in a message.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from proxy.stores.base import LedgerProblem
from proxy.stores.migrations import REVISIONS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from sqlalchemy.engine import URL, Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import ConnectionPoolEntry

PATIENCE_S: Final = 5.0
_LOOK_S: Final = 0.01
# any number no other program locks in the same database
_MIGRATION_LOCK: Final = 7_355_608_001
_READING: Final = "sluice_reading"


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


@contextmanager
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


def file_of(engine: Engine) -> tuple[int, int] | None:
    """Which file the path of an SQLite database names now: device and number. None for PostgreSQL, or for no file.

    SQLite itself goes on writing into a file that was deleted or replaced, where nobody will ever find it.
    """
    if engine.url.database is None or engine.dialect.name != "sqlite":
        return None
    try:
        found = Path(engine.url.database).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def migrate(engine: Engine) -> None:
    """Bring the tables up to date. Any number of processes may do so at once: one works, the others wait.

    Raises `LedgerProblem` when the database was written by a newer Sluice, and SQLAlchemy's errors when it cannot be
    reached.
    """
    with reading(engine).connect() as connection:
        if _is_current(connection):
            return
    # 180 ms and only when there is something to do; before the lock, so that others do not wait for it
    command, config = import_module("alembic.command"), import_module("alembic.config").Config()
    config.set_main_option("script_location", "proxy.stores:migrations")
    with engine.connect() as connection:
        connection.detach()
        with connection.begin():
            _lock(connection)
            if not _is_current(connection):
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
            "ledger.url asks for PostgreSQL, whose driver is missing: pip install 'sluice-proxy[postgres]'"
        ) from None
    # a connection may have died in the pool: asking costs a round trip, of the few transactions that go by the pool
    engine = sa.create_engine(url, pool_pre_ping=True, use_native_hstore=False)

    @sa.event.listens_for(engine, "do_connect")
    def _connect(_dialect: object, _entry: object, _arguments: object, parameters: dict[str, Any]) -> object:
        return postgres.connect(parameters, patience_s)

    return engine


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise LedgerProblem("ledger.url: SQLite needs a file that is kept, as in sqlite:///sluice.db")
    file = url.database
    engine = sa.create_engine(url, connect_args={"timeout": PATIENCE_S, "isolation_level": None})

    @sa.event.listens_for(engine, "do_connect")
    def _create(*_: object) -> None:
        # SQLite gives the files beside it (-wal, -shm) the same mode; an existing file keeps its own. That must not be
        # opened here: closing it again would release the locks of every connection in this process (fcntl(2)), and
        # another process would take the write-ahead log away from under them.
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if Path(file).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file) from None
            if not os.access(file, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file) from None

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        _set_up_sqlite(connection)  # type: ignore[arg-type]  # it is what the dialect connects

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        only_reads = connection.get_execution_options().get(_READING)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    return engine


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


def reason_of(error: SQLAlchemyError) -> str:
    """The first line of what the driver says: not SQLAlchemy's text, which quotes statements, and digests in them."""
    said = error.orig if isinstance(error, DBAPIError) else None
    return (str(said or "").strip().splitlines() or [type(said or error).__name__])[0]
