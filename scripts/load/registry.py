"""An MLflow store with many runs and versions: recording, registering, promoting, and the question
whether anything changed.
"""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import yaml

from flows.dvc.fingerprints import PARTS, PREFIX
from models.common.errors import InputError
from scripts.load.timing import timed
from tasks.config.schema import Params, load_params
from tasks.registry import promotion, tracking
from tasks.registry.registration import CONTENT, register_student
from tasks.registry.store import DATABASE, local_folder

TITLE = "MLflow's store"
UNIT = "runs, and two versions for every five of them"
NEEDED = ("params.yaml", "dvc.lock", "data/student", "data/evaluation", "data/teacher/teacher.json")
OF_RUNS = ("runs", "params", "tags", "metrics", "latest_metrics")  # tables, by run_uuid
OF_VERSIONS = ("model_versions", "model_version_tags")  # by name and version


def measure(
    sizes: Sequence[int], folder: Path, project: Path
) -> Iterator[tuple[int, dict[str, float]]]:
    """Seconds by step, at so many runs; the store grows from each size to the next.

    `project` has finished results, which are copied. Raises InputError if it has none.
    """
    root = copy_results(project, folder)
    own = ["registration.tracking_uri=null"]  # a store of its own
    params = load_params(root / "params.yaml", own)
    first, _ = step_by_step(root, params, 0)
    for size in sizes:
        fill(local_folder(root) / DATABASE, first, params.registration.name, size, 2 * size // 5)
        yield size, step_by_step(root, params, size)[1]


def step_by_step(root: Path, params: Params, number: int) -> tuple[str, dict[str, float]]:
    """Register another student, made from inputs of its own; the MLflow run's id, and seconds."""
    another_student(root, number)
    inputs = {f"{PREFIX}{part}": f"{part}-{number}" for part in PARTS}
    steps: dict[str, float] = {}
    with timed(steps, "record the run"):
        run = tracking.track_run(root, params)
    with timed(steps, "register the student"):
        version = register_student(root, params, run.run_id, inputs)
    with timed(steps, "compare and promote"):
        promotion.promote(root, params, version.number)
    with timed(steps, "is nothing changed?"):
        found = promotion.latest_decision(root, params, inputs)
    assert found is not None and found[0] == version.number
    with timed(steps, "a second registration"):
        again = register_student(root, params, run.run_id, inputs)
    assert not again.created
    return run.run_id, steps


def copy_results(project: Path, folder: Path) -> Path:
    """A project folder with copies of the results that a registration reads."""
    root = folder / "registry"
    shutil.rmtree(root, ignore_errors=True)
    for name in NEEDED:
        source, place = project / name, root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not source.exists():
            raise InputError(f"{source}: missing; run `make run PRESET=tiny` first")
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            shutil.copyfile(source, place)
    return root


def another_student(root: Path, number: int) -> None:
    """Change the results so that they are those of another distillation."""
    history = root / "data/student/history.csv"
    text = history.read_text()
    history.unlink()  # as DVC leaves it, it cannot be written
    history.write_text(f"{text.rstrip()}\n{text.splitlines()[-1]}\n")
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    for name in ("student", "evaluation"):
        (out,) = lock["stages"][name]["outs"]
        out["md5"] = f"{number:032x}.dir"
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))


def fill(database: Path, run: str, name: str, runs: int, versions: int) -> None:
    """Copy the run and the model's version 1, row by row, until there are so many."""
    with closing(sqlite3.connect(database)) as store:
        (there,) = store.execute("select count(*) from runs").fetchone()
        for _ in range(there, runs):
            copy_run(store, run, uuid.uuid4().hex)
        (last,) = store.execute(
            "select max(version) from model_versions where name = ?", (name,)
        ).fetchone()
        for number in range(last + 1, versions + 1):
            copy_version(store, name, number)
        store.commit()


def copy_run(store: sqlite3.Connection, run: str, new: str) -> None:
    """A finished run with the same params, figures and tags, made from results of its own."""
    for table in OF_RUNS:
        _copy(store, table, {"run_uuid": (run, new)})
    mark = (new, tracking.FINGERPRINT, new)
    store.execute("update tags set value = ? where key = ? and run_uuid = ?", mark)


def copy_version(store: sqlite3.Connection, name: str, number: int) -> None:
    """A version with the same tags, of another student, made from other inputs."""
    for table in OF_VERSIONS:
        _copy(store, table, {"version": (1, number), "name": (name, name)})
    own = "key = ? or key like ?"
    mark = (uuid.uuid4().hex, name, number, CONTENT, f"{PREFIX}%")
    store.execute(
        f"update model_version_tags set value = ? where name = ? and version = ? and ({own})", mark
    )


def _copy(store: sqlite3.Connection, table: str, keys: dict[str, tuple[object, object]]) -> None:
    """Copy the table's rows with these keys under other ones: {column: (old, new)}."""
    columns = [row[1] for row in store.execute(f"pragma table_info({table})")]
    chosen = ", ".join("?" if column in keys else f'"{column}"' for column in columns)
    where = " and ".join(f"{column} = ?" for column in keys)
    new = [keys[column][1] for column in columns if column in keys]
    old = [keys[column][0] for column in keys]
    made = store.execute(
        f"insert into {table} select {chosen} from {table} where {where}", [*new, *old]
    )
    assert made.rowcount or table in ("metrics", "latest_metrics"), table
