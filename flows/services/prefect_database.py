"""Prefect's own sqlite database, made and migrated beside its place before a server starts."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from tasks.utils.sqlite_files import MigrationFailed, bring_up_to_date, script_heads

DATABASE = "prefect.db"
ELSEWHERE = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")

logger = logging.getLogger(__name__)


def ensure_database() -> None:
    """Make the database in PREFECT_HOME, or bring its tables to this version of Prefect.

    A database that cannot be migrated is set aside, since it holds nothing but what past runs have
    logged. Nothing is done where the user has named another database.
    """
    if any(name in os.environ for name in ELSEWHERE):
        return
    database = Path(os.environ["PREFECT_HOME"]) / DATABASE
    with FileLock(database.with_name(".database.lock")):
        try:
            bring_up_to_date(database, heads(), _migrate, _has_content)
        except MigrationFailed as error:
            if not database.exists():
                raise
            aside = database.with_name(f"{DATABASE}.damaged")
            logger.warning("%s; it is set aside as %s", error, aside)
            for end in ("-wal", "-shm", "-journal"):
                database.with_name(f"{DATABASE}{end}").unlink(missing_ok=True)
            database.replace(aside)
            bring_up_to_date(database, heads(), _migrate, _has_content)


def heads() -> set[str]:
    """The revision of the installed Prefect's tables."""
    return script_heads("prefect", "server/database/_migrations")


def _migrate(database: Path) -> None:
    """Prefect's own command, with its settings taken from the environment when it starts."""
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        command,
        cwd=database.parent,
        env=env | {ELSEWHERE[0]: f"sqlite+aiosqlite:///{database}"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(lines[-1])


def _has_content(store: sqlite3.Connection) -> bool:
    """Whether any run was recorded."""
    with suppress(sqlite3.OperationalError):  # not made yet
        return bool(store.execute("select count(*) from flow_run").fetchone()[0])
    return False
