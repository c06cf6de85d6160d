"""MLflow's store: sqlite and files under mlruns/, unless `registration.tracking_uri` names a
server.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient, set_registry_uri, set_tracking_uri

from tasks.config.schema import Params

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
    """The address of the project's own database."""
    return f"sqlite:///{local_folder(root) / 'mlflow.db'}"


def open_store(root: Path, params: Params) -> MlflowClient:
    """A client of the project's MLflow store, made on first use; also MLflow's default from now
    on.
    """
    uri = params.registration.tracking_uri
    if uri is None:
        uri, folder = local_uri(root), local_folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(folder / ".lock"),
            calm(),
        ):  # two first uses at once would both make the tables
            _follow_moved_folder(folder)
            MlflowClient(uri).search_experiments(max_results=1)
    set_tracking_uri(uri)
    set_registry_uri(uri)
    return MlflowClient(uri)


def upgrade_store(root: Path) -> None:
    """Make the project's own database, or bring its tables to this version of MLflow."""
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    folder = local_folder(root)
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), calm():
        if (folder / "mlflow.db").is_file():
            _follow_moved_folder(folder)
            _upgrade_db(create_sqlalchemy_engine(local_uri(root)))
        MlflowClient(local_uri(root)).search_experiments(max_results=1)


def _follow_moved_folder(folder: Path) -> None:
    """Rewrite the absolute paths in the store after the project folder was moved or copied."""
    database = folder / "mlflow.db"
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
