"""Migrations: the tables they make are those of the code, and any number of processes may apply them at once."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from proxy.stores import database
from proxy.stores.base import LedgerProblem
from proxy.stores.database import migrate, open_database
from proxy.stores.migrations import REVISIONS
from proxy.stores.tables import METADATA
from tests.fakes.forking import context
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from sqlalchemy import Engine

MIGRATE = """
import sys
from proxy.stores.database import migrate, open_database
engine = open_database(sys.argv[1])
migrate(engine)
engine.dispose()
print(sorted(name for name in sys.modules if name == "alembic"))
"""


def migrate_when_told(url: str, told: Connection) -> None:
    engine = open_database(url)
    told.recv()
    migrate(engine)
    engine.dispose()


def test_the_migrated_tables_are_those_of_the_code(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def _described(index: Any) -> str:
    options = index.get("dialect_options", {})
    where = options.get("sqlite_where", options.get("postgresql_where"))
    return f"{index['name']} {index['column_names']} {index['unique']} where {where}"


def shapes(engine: Engine) -> dict[str, object]:
    """The tables as the database describes them, whatever the order of their columns."""
    inspector = sa.inspect(engine)
    return {
        name: [
            sorted(({**column, "type": str(column["type"])} for column in inspector.get_columns(name)), key=str),
            inspector.get_pk_constraint(name),
            sorted(inspector.get_unique_constraints(name), key=str),
            sorted(map(_described, inspector.get_indexes(name))),
        ]
        for name in inspector.get_table_names()
    }


def test_a_new_database_is_the_same_as_one_that_went_all_the_way(engine: Engine) -> None:
    """A new file is made in one go; a table of somebody else's makes another one take each step."""
    made = shapes(engine)
    with engine.begin() as connection:
        for name in made:
            connection.execute(sa.text(f"DROP TABLE {name}"))
        connection.execute(sa.text("CREATE TABLE somebody_elses (id INTEGER)"))
    migrate(engine)
    upgraded = shapes(engine)
    del upgraded["somebody_elses"]
    assert upgraded == made
    assert set(made) == {*METADATA.tables, "alembic_version"}


def test_the_list_of_revisions_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", "proxy.stores:migrations")
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(known)) == REVISIONS


def test_eight_processes_at_once_all_succeed(ledger_url: str) -> None:
    pairs = [context().Pipe() for _ in range(8)]
    children = [context().Process(target=migrate_when_told, args=(ledger_url, theirs)) for _, theirs in pairs]
    for child in children:
        child.start()
    for ours, theirs in pairs:
        ours.send("go")
        theirs.close()
    for child in children:
        child.join(LONG_S)
    assert [child.exitcode for child in children] == [0] * 8
    for ours, _ in pairs:
        ours.close()
    engine = open_database(ledger_url)
    with engine.connect() as connection:
        assert connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [REVISIONS[-1]]
    engine.dispose()


def test_where_nothing_is_to_do_alembic_is_not_imported(engine: Engine, ledger_url: str) -> None:
    command = [sys.executable, "-c", MIGRATE, ledger_url]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONG_S).stdout == "[]\n"


def test_a_database_of_a_newer_release_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerProblem, match="newer Sluice"):
        migrate(engine)


def test_a_step_that_fails_leaves_nothing(ledger_url: str) -> None:
    engine = open_database(ledger_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE keys (id TEXT)"))  # in the way, after the first tables
    with pytest.raises(sa.exc.DBAPIError):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == ["keys"]
    engine.dispose()


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(engine)
    with engine.begin():
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    engine.dispose()
    assert modes["ledger.db"] == 0o600
    assert set(modes.values()) == {0o600}


def test_a_relative_path_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = open_database("sqlite:///ledger.db")
    migrate(engine)
    engine.dispose()
    assert Path("ledger.db").exists()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://root:hunter2@db/x", "sqlite://", "sqlite:///:memory:", "//user:hunter2@db"]
)
def test_urls_that_cannot_be_meant_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(LedgerProblem, match=r"ledger\.url") as caught:
        open_database(url)
    assert "hunter2" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(database, "import_module", missing)
    with pytest.raises(LedgerProblem, match="extra `postgres`"):
        open_database("postgresql://user:hunter2@db/ledger")
