"""A database is the old one or the new one, whatever stops its migration."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tasks.utils.sqlite_files import MigrationFailed, bring_up_to_date, revisions
from tests.paths import PROJECT


def write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as store:
        for statement in statements:
            store.execute(statement)
        store.commit()


def read(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as store:
        return store.execute(query).fetchall()


def migrate(path: Path) -> None:
    """Version 1: a table `runs`. Version 2: a column more, as Alembic does it with sqlite."""
    with closing(sqlite3.connect(path)) as store:
        tables = {name for (name,) in store.execute("select name from sqlite_master")}
        if "runs" not in tables:
            store.execute("create table alembic_version (version_num text)")
            store.execute("insert into alembic_version values ('1')")
            store.execute("create table runs (id integer)")
        store.execute("create table _alembic_tmp_runs (id integer, score real)")
        store.execute("insert into _alembic_tmp_runs (id) select id from runs")
        store.execute("drop table runs")
        store.execute("alter table _alembic_tmp_runs rename to runs")
        store.execute("update alembic_version set version_num = '2'")
        store.commit()


def has_content(store: sqlite3.Connection) -> bool:
    try:
        return bool(store.execute("select count(*) from runs").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def ensure(path: Path) -> None:
    bring_up_to_date(path, {"2"}, migrate, has_content)


OLD = (
    "create table alembic_version (version_num text)",
    "insert into alembic_version values ('1')",
    "create table runs (id integer)",
    "insert into runs values (7)",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_made_and_left_alone(place: Path) -> None:
    ensure(place)
    before = place.stat()
    ensure(place)
    assert revisions(place) == {"2"} and place.stat().st_ino == before.st_ino
    assert os.listdir(place.parent) == [place.name]


def test_migrated_and_the_former_kept(place: Path) -> None:
    write(place, *OLD)
    ensure(place)
    assert read(place, "select id, score from runs") == [(7, None)]
    kept = place.with_name("store.db.before-1")
    assert read(kept, "select * from runs") == [(7,)] and revisions(kept) == {"1"}
    assert sorted(os.listdir(place.parent)) == [place.name, kept.name]


def test_a_failed_migration_changes_nothing(place: Path) -> None:
    write(place, *OLD)
    before = place.read_bytes()

    def fails(path: Path) -> None:
        write(path, "create table more (id integer)", "drop table alembic_version")
        raise RuntimeError("no such column: x\nand more")

    with pytest.raises(
        MigrationFailed, match=r"revision 1 and could not .* to 2: no such column: x$"
    ):
        bring_up_to_date(place, {"2"}, fails, has_content)
    assert place.read_bytes() == before and os.listdir(place.parent) == [place.name]


@pytest.mark.parametrize("dropped", [False, True])
def test_half_a_migration_with_content_is_finished(dropped: bool, place: Path) -> None:
    """Killed before or after the old table was dropped: "table _alembic_tmp_runs already exists"."""
    write(
        place,
        *OLD,
        "create table _alembic_tmp_runs (id integer)",
        "insert into _alembic_tmp_runs select * from runs",
        *(["drop table runs"] if dropped else []),
    )
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        write(place, "create table _alembic_tmp_runs (id integer)")
    ensure(place)
    assert read(place, "select id, score from runs") == [(7, None)]


@pytest.mark.parametrize(
    "half",
    [
        ("create table alembic_version (version_num text)", "create table runs (id integer)"),
        (*OLD[:3], "create table _alembic_tmp_runs (id integer)"),
        (*OLD[:3], "create table other (id integer)"),
    ],
)
def test_half_made_without_content_is_made_anew(half: tuple[str, ...], place: Path) -> None:
    write(place, *half)

    def strict(path: Path) -> None:
        """Like MLflow's: stops at whatever it does not expect."""
        if path.exists() and read(path, "select 1 from sqlite_master where name = 'other'"):
            raise RuntimeError("table other already exists")
        migrate(path)

    bring_up_to_date(place, {"2"}, strict, has_content)
    assert revisions(place) == {"2"} and read(place, "select * from runs") == []


def test_an_empty_file_is_none(place: Path) -> None:
    place.touch()
    ensure(place)
    assert revisions(place) == {"2"}


def test_what_is_no_database_is_told_and_kept(place: Path) -> None:
    place.write_bytes(b"not a database" * 100)
    with pytest.raises(MigrationFailed, match="cannot be read"):
        ensure(place)
    assert place.read_bytes() == b"not a database" * 100


KILLED = """
import sys
from pathlib import Path
from tests.tasks.utils.test_sqlite_files import ensure
ensure(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("old", [False, True])
def test_killed_before_it_takes_its_place(old: bool, place: Path, tmp_path: Path) -> None:
    if old:
        write(place, *OLD)
    env = os.environ | {
        "FEWSTEP_KILL_AT": "database.made",
        "FEWSTEP_KILL_MARK": str(tmp_path / "mark"),
        "PYTHONPATH": str(PROJECT),
    }
    command = [sys.executable, "-c", KILLED, str(place)]
    assert subprocess.run(command, env=env).returncode == -signal.SIGKILL
    assert revisions(place) == {"1"} if old else not place.exists()
    assert subprocess.run(command, env=env).returncode == 0
    assert revisions(place) == {"2"}
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
