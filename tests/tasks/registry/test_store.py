"""MLflow's database: whole, whatever was killed while it was made, and wherever the project lies."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils

from models.common.errors import InputError
from tasks.registry import store


def half_made(database: Path, stop_at: int) -> None:
    """What a kill leaves of MLflow's own making of the tables: those of the first steps, and half
    of the next.
    """
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.tracking.dbmodels.initial_models import Base

    uri = f"sqlite:///{database}"
    engine = utils.create_sqlalchemy_engine(uri)
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(uri)
    steps = [step.revision for step in ScriptDirectory.from_config(config).walk_revisions()]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, steps[::-1][stop_at])
    engine.dispose()
    with closing(sqlite3.connect(database)) as half:
        half.execute("create table _alembic_tmp_experiments (experiment_id integer)")
        half.commit()


def experiments(database: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{database}")
    return sorted(found.name for found in client.search_experiments())


@pytest.mark.parametrize("stop_at", [0, 12])
def test_half_a_first_use_is_made_anew(stop_at: int, tmp_path: Path) -> None:
    database = tmp_path / "mlruns/mlflow.db"
    database.parent.mkdir()
    half_made(database, stop_at)
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    with pytest.raises(Exception, match="_alembic_tmp_experiments already exists"):
        utils._upgrade_db(engine)  # what every later run ended with
    engine.dispose()
    store.upgrade_store(tmp_path)
    assert store.revisions(database) == {store._head()}
    assert experiments(database) == ["Default"]


def test_half_a_migration_keeps_what_was_recorded(tmp_path: Path) -> None:
    database = tmp_path / "mlruns/mlflow.db"
    database.parent.mkdir()
    half_made(database, 12)
    with closing(sqlite3.connect(database)) as half:
        half.execute(
            "insert into experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "values (0, 'Default', '/x', 'active'), (1, 'mine', '/x', 'active')"
        )
        half.commit()
    store.upgrade_store(tmp_path)
    assert experiments(database) == ["Default", "mine"]
    (kept,) = database.parent.glob("mlflow.db.before-*")
    with closing(sqlite3.connect(kept)) as former:
        assert former.execute("select count(*) from experiments").fetchone() == (2,)


def test_what_is_no_database_is_one_line(tmp_path: Path) -> None:
    database = tmp_path / "mlruns/mlflow.db"
    database.parent.mkdir()
    database.write_text("this is no database, " * 100)
    with pytest.raises(InputError, match="mlflow.db cannot be read: .*; move the file away"):
        store.upgrade_store(tmp_path)
    assert database.read_text().startswith("this is no database")


def test_not_under_a_server_at_work(tmp_path: Path) -> None:
    """It has the former file open, and would go on writing there."""
    record = tmp_path / ".fewstep/services/mlflow.json"
    record.parent.mkdir(parents=True)
    started = psutil.Process().create_time()
    record.write_text(
        json.dumps({"pid": os.getpid(), "started": started, "address": "http://127.0.0.1:5000"})
    )
    with pytest.raises(InputError, match="server is at work at http://127.0.0.1:5000; run `make"):
        store.upgrade_store(tmp_path)


@pytest.mark.parametrize("name", ["me@corp.example", "a b#c&d=e+f", "é"])
def test_the_store_of_a_project_in_an_odd_folder(name: str, tmp_path: Path) -> None:
    """Runs, and files of theirs, below a folder with characters that addresses read as syntax."""
    root = tmp_path / name
    store.upgrade_store(root)
    client = MlflowClient(store.local_uri(root))
    place = str(store.local_folder(root) / "artifacts/mine")
    experiment = client.create_experiment("mine", artifact_location=place)
    run = client.create_run(experiment).info.run_id
    note = tmp_path / "note.txt"
    note.write_text("kept")
    client.log_artifact(run, str(note))
    assert [item.path for item in client.list_artifacts(run)] == ["note.txt"]
    assert (root / "mlruns/artifacts/mine" / run / "artifacts/note.txt").read_text() == "kept"
    got = client.download_artifacts(run, "note.txt", str(tmp_path))
    assert Path(got).read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "note.txt"])


@pytest.mark.parametrize("name", ["50%41", "what?", "a:b", "{old}", "a}", 'it\'s "new"'])
def test_folders_that_addresses_cannot_name_are_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    root.mkdir()
    with pytest.raises(InputError, match="move or rename the folder"):
        store.upgrade_store(root)
    assert not list(root.iterdir())
