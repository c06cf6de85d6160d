"""MLflow's store: sqlite and files under mlruns/, unless `registration.tracking_uri` names a
server.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient, set_registry_uri, set_tracking_uri

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.utils.environment import check_place, running_service
from tasks.utils.sqlite_files import MigrationFailed, bring_up_to_date, revisions

DATABASE = "mlflow.db"
Client = MlflowClient  # for modules that use the store without knowing MLflow

# Columns in which MLflow keeps absolute paths.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def local_folder(root: Path) -> Path:
    """mlruns/; that of the project where `root` is a worktree, which has a link to it."""
    return (root / "mlruns").resolve()


def local_uri(root: Path) -> str:
    """The address of the project's own database; InputError if the project's path has no place in
    one.
    """
    check_place(root)
    return f"sqlite:///{local_folder(root) / DATABASE}"


def open_store(root: Path, params: Params) -> MlflowClient:
    """A client of the project's MLflow store, made on first use; also MLflow's default from now
    on.
    """
    uri = params.registration.tracking_uri
    if uri is None:
        uri = local_uri(root)
        upgrade_store(root)
    set_tracking_uri(uri)
    set_registry_uri(uri)
    return MlflowClient(uri)


def upgrade_store(root: Path) -> None:
    """Make the project's own database, or bring its tables to this version of MLflow.

    Raises InputError if that fails, or if a server that `make up` has started works with it.
    """
    check_place(root)
    folder = local_folder(root)
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    database = folder / DATABASE
    with FileLock(folder / ".lock"), calm():  # two first uses at once would both make the tables
        current = database.is_file() and revisions(database) == {_head()}
        if not current and (server := running_service(root, "mlflow")):
            raise InputError(
                f"{database}: made by another version of MLflow, whose server is at work at "
                f"{server}; run `make down` first"
            )
        try:
            bring_up_to_date(database, {_head()}, _make_tables, _has_content)
        except MigrationFailed as error:
            raise InputError(
                f"{error}; move the file away, or install the version of MLflow that wrote it"
            ) from error
        _follow_moved_folder(folder)
        MlflowClient(local_uri(root)).search_experiments(max_results=1)  # makes the first one


@cache
def _head() -> str:
    """The revision of this version's tables."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _make_tables(database: Path) -> None:
    """MLflow's tables in the file, new or of an earlier version."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    try:
        if utils._is_empty_database(engine):
            utils._initialize_tables(engine)
        else:
            utils._upgrade_db(engine)
    finally:
        engine.dispose()


def _has_content(store: sqlite3.Connection) -> bool:
    """Whether anything was recorded: a run, a model, or an experiment beside MLflow's default."""
    for table, at_most in (("runs", 0), ("registered_models", 0), ("experiments", 1)):
        with suppress(sqlite3.OperationalError):  # not made yet
            if store.execute(f"select count(*) from {table}").fetchone()[0] > at_most:
                return True
    return False


def _follow_moved_folder(folder: Path) -> None:
    """Rewrite the absolute paths in the store after the project folder was moved or copied."""
    database = folder / DATABASE
    if not database.is_file():
        return
    with sqlite3.connect(database) as store:
        tables = {
            name for (name,) in store.execute("select name from sqlite_master where type = 'table'")
        }
        if "experiments" not in tables:
            return
        places = [
            place
            for (place,) in store.execute("select artifact_location from experiments")
            if place
        ]
        old = {
            place.partition("/mlruns/artifacts/")[0]
            for place in places
            if "/mlruns/artifacts/" in place
        }
        for before in old - {str(folder.parent)}:
            for table, column in _LOCATIONS:
                if table in tables:
                    moved = (
                        f"{column} = ? || substr({column}, ?) where {column} like ? || '/mlruns/%'"
                    )
                    store.execute(
                        f"update {table} set {moved}", (str(folder.parent), len(before) + 1, before)
                    )
    store.close()


@contextmanager
def calm() -> Iterator[None]:
    """Keep MLflow's own progress notes and advice out of the terminal."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
