"""Prefect's database is made whole before a server starts, and never stops a run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.services import prefect_database
from flows.services.prefect_database import DATABASE, ELSEWHERE, ensure_database, heads
from tasks.utils.sqlite_files import revisions


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for name in ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def tables(path: Path, revision: str, runs: int) -> None:
    with closing(sqlite3.connect(path)) as store:
        store.execute("create table alembic_version (version_num text)")
        store.execute("insert into alembic_version values (?)", (revision,))
        store.execute("create table flow_run (id integer)")
        store.executemany("insert into flow_run values (?)", [(number,) for number in range(runs)])
        store.commit()


def test_prefect_itself_makes_it(home: Path) -> None:
    ensure_database()
    assert revisions(home / DATABASE) == heads()
    assert sorted(path.name for path in home.glob("*prefect.db*")) == [DATABASE]


@pytest.mark.parametrize("runs", [0, 3])
def test_one_that_cannot_be_migrated_gives_way(
    runs: int, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds what past runs have logged: kept aside, unless it holds nothing."""

    def migrate(path: Path) -> None:
        if path.exists():
            raise RuntimeError("Can't locate revision identified by 'future'")
        tables(path, *heads(), 0)

    monkeypatch.setattr(prefect_database, "_migrate", migrate)
    tables(home / DATABASE, "future", runs)
    ensure_database()
    assert revisions(home / DATABASE) == heads()
    aside = home / f"{DATABASE}.damaged"
    assert aside.exists() == bool(runs)
    if runs:
        assert revisions(aside) == {"future"} and f"set aside as {aside}" in caplog.text


def test_another_database_is_its_keepers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ELSEWHERE[0], "postgresql+asyncpg://db.example/prefect")
    ensure_database()
    assert list(home.iterdir()) == []
