"""SQLite databases whose tables a tool makes and migrates step by step (Alembic): done on a copy
beside the database, which takes its place when it is whole.

SQLite commits each step by itself, so a killed migration leaves half of one behind, and the next
stops at it. Here a kill leaves the old database or the new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from tasks.utils.atomic import fsync_path, remove_stale, temporary_beside
from tasks.utils.failpoints import reach

HALF = "_alembic_tmp_"  # Alembic's copy of a table that it is changing

logger = logging.getLogger(__name__)


class MigrationFailed(RuntimeError):
    """The tables could not be brought to the wanted version; the database is as it was."""


def bring_up_to_date(
    database: Path,
    heads: set[str],
    migrate: Callable[[Path], None],
    has_content: Callable[[sqlite3.Connection], bool],
) -> None:
    """Make `database`, or bring its tables to the revisions `heads`; no work if it has them.

    `migrate(path)` does it to a file that is not yet, or no longer, in use. What a killed migration
    has left is finished; where that fails, a database without content (`has_content`) is made anew.
    The former database is kept as NAME.before-REVISION. One at a time: the caller holds a lock.
    Raises MigrationFailed, with the database as it was.
    """
    remove_stale(database)
    there = database.is_file() and database.stat().st_size > 0
    if there and revisions(database) == heads and not _half_tables(database):
        return
    with _beside(database) as new:
        if there:
            _copy(database, new)
            _finish_half(new)
        _migrate(database, new, heads, migrate, has_content)
        reach("database.made")
        if there:
            _keep(database)
        _settle(new)
        fsync_path(new)
        new.replace(database)
    fsync_path(database.parent)


def revisions(database: Path) -> set[str]:
    """The revisions of its tables; empty if it has none."""
    with _open(database) as store:
        try:
            return {
                str(name) for (name,) in store.execute("select version_num from alembic_version")
            }
        except sqlite3.DatabaseError:
            return set()


def script_heads(package: str, folder: str) -> set[str]:
    """The newest revisions among the migration scripts of an installed package."""
    from alembic.script import ScriptDirectory

    spec = find_spec(package)
    scripts = Path(spec.origin or "").parent / folder if spec else Path(folder)
    versions = scripts / "versions"
    place = versions / "sqlite" if (versions / "sqlite").is_dir() else versions
    return set(ScriptDirectory(str(scripts), version_locations=[str(place)]).get_heads())


def _migrate(
    database: Path,
    new: Path,
    heads: set[str],
    migrate: Callable[[Path], None],
    has_content: Callable[[sqlite3.Connection], bool],
) -> None:
    """Migrate the file `new`, a copy of `database` or nothing yet."""
    copied = new.exists()
    try:
        migrate(new)
        if (found := revisions(new)) != heads:
            raise RuntimeError(f"they have revision {', '.join(sorted(found)) or 'none'} after it")
    except Exception as error:
        if not copied:
            raise MigrationFailed(f"{database} could not be made: {_line(error)}") from error
        with _open(new) as store:
            if has_content(store):
                raise MigrationFailed(
                    f"{database} has tables of revision "
                    f"{', '.join(sorted(revisions(database))) or 'none'} and could not be brought "
                    f"to {', '.join(sorted(heads))}: {_line(error)}"
                ) from error
        logger.warning("%s was half made and holds nothing: it is made anew", database)
        _remove(new)
        _migrate(database, new, heads, migrate, has_content)


def _finish_half(database: Path) -> None:
    """Undo what a killed step has left: a table's changed copy goes, or takes the table's name."""
    with _open(database) as store:
        for name in _half_tables(database):
            table = name.removeprefix(HALF)
            found = store.execute("select 1 from sqlite_master where name = ?", (table,)).fetchone()
            # Alembic drops the old table when the copy is filled, and then renames the copy.
            change = (
                f'drop table "{name}"' if found else f'alter table "{name}" rename to "{table}"'
            )
            store.execute(change)
            logger.warning("%s: finished what a killed migration has left of %s", database, table)
        store.commit()


def _half_tables(database: Path) -> list[str]:
    with _open(database) as store:
        try:
            found = store.execute("select name from sqlite_master where type = 'table'").fetchall()
        except sqlite3.DatabaseError:
            return []
    return [name for (name,) in found if name.startswith(HALF)]


def _copy(database: Path, new: Path) -> None:
    """A copy that holds what a killed process had committed, and nothing of what it had not."""
    with _open(database) as source, _open(new) as target:
        try:
            source.backup(target)
        except sqlite3.DatabaseError as error:
            raise MigrationFailed(f"{database} cannot be read: {_line(error)}") from error


def _keep(database: Path) -> None:
    """Keep the former database under a name of its own."""
    kept = database.with_name(
        f"{database.name}.before-{'-'.join(sorted(revisions(database))) or 'tables'}"
    )
    _settle(database)
    second = temporary_beside(kept)
    os.link(database, second)
    second.replace(kept)


def _settle(database: Path) -> None:
    """Bring what lies in a write-ahead log into the file itself."""
    with _open(database) as store:
        store.execute("pragma wal_checkpoint(truncate)").fetchall()
        store.execute("pragma journal_mode = delete").fetchall()


@contextlib.contextmanager
def _beside(database: Path) -> Iterator[Path]:
    new = temporary_beside(database)
    try:
        yield new
    finally:
        _remove(new)


def _remove(database: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        database.with_name(f"{database.name}{end}").unlink(missing_ok=True)


@contextlib.contextmanager
def _open(database: Path) -> Iterator[sqlite3.Connection]:
    store = sqlite3.connect(database, timeout=20)
    try:
        yield store
    finally:
        store.close()


def _line(error: BaseException) -> str:
    """An error in one line; SQLAlchemy's go on with the statement and a link."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
