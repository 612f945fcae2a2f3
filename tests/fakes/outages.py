"""Ways for a ledger's database to fail under a running proxy, and to come back."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from proxy import opening
from proxy.stores import database
from proxy.stores.ledger import DatabaseLedger
from proxy.stores.writer import Rhythm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from tests.fakes.postgres import PostgresServer


@dataclass(frozen=True)
class Outage:
    """How to bring it about and to end it, each blocking, and what `/readyz` says of it meanwhile."""

    fail: Callable[[], object]
    heal: Callable[[], object]
    said: str


def hasten(monkeypatch: pytest.MonkeyPatch, patience_s: float = 1.0, **ledger: Any) -> None:
    """Make the proxies of a test give a database up early, after `patience_s`, and try again early.

    The ledger's signs of life come after an exchange has noticed the outage, so that a test can see one notice it.
    """
    monkeypatch.setattr(database, "PATIENCE_S", patience_s)
    monkeypatch.setattr(opening, "open_database", functools.partial(database.open_database, patience_s=patience_s))
    rhythm = Rhythm(heartbeat_s=60.0, first_retry_s=0.02, last_retry_s=0.1)
    monkeypatch.setattr(opening, "DatabaseLedger", functools.partial(DatabaseLedger, rhythm=rhythm, **ledger))


@contextlib.contextmanager
def locked(url: str) -> Iterator[Outage]:
    """Another program has taken the file for itself."""
    locker = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    yield Outage(
        lambda: locker.execute("BEGIN EXCLUSIVE"),
        lambda: locker.execute("COMMIT"),
        "OperationalError: database is locked",
    )
    locker.close()


@contextlib.contextmanager
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    """The file can no longer be written. Not by its mode, which holds neither root nor who has it open already."""
    connections: list[sqlite3.Connection] = []
    only_reads = [False]
    set_up = database._set_up_sqlite

    def set_up_and_remember(connection: sqlite3.Connection) -> None:
        set_up(connection)
        connection.execute(f"PRAGMA query_only = {only_reads[-1]}")
        connections.append(connection)

    def switch(on: bool) -> None:
        only_reads.append(on)
        for connection in connections:
            with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                connection.execute(f"PRAGMA query_only = {on}")

    monkeypatch.setattr(database, "_set_up_sqlite", set_up_and_remember)
    yield Outage(lambda: switch(True), lambda: switch(False), "OperationalError: attempt to write a readonly database")


def new_database(server: PostgresServer) -> str:
    """The URL of an empty database on a server that goes with it."""
    name = f"ledger_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.url.replace("/postgres?", f"/{name}?")


def stopped(server: PostgresServer) -> Outage:
    """The server is stopped as by a crash, later started."""
    return Outage(server.stop, server.start, "OperationalError")


def frozen(server: PostgresServer) -> Outage:
    """The server hangs: its kernel goes on to accept and acknowledge."""
    return Outage(server.freeze, server.thaw, "OperationalError")


def terminate_backends(server: PostgresServer) -> int:
    """End every connection but the one that asks; how many there were."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return len(found.fetchall())
