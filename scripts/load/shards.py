"""Many shards in one cache of trajectories: written, published, opened, recorded by DVC, and asked
whether a stage that reads them has anything to do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from flows.dvc import fingerprints, storage
from flows.dvc.repro import WITHOUT_GIT, outdated
from scripts.load.timing import timed
from tasks.data.shards import ShardSet, publish, write_shard

TITLE = "One cache of trajectories"
UNIT = "shards of three arrays"
DATA = "data/trajectories"
PIPELINE = f"""\
stages:
  trajectories:
    cmd: python -m nothing
    deps: [maker.py]
    outs: [{DATA}]
  student:
    cmd: python -m nothing
    deps: [maker.py, {DATA}]
    outs: [data/student]
"""


def measure(
    sizes: Sequence[int], folder: Path, project: Path
) -> Iterator[tuple[int, dict[str, float]]]:
    """Seconds by step, at so many shards; the cache grows from each size to the next."""
    root = make_project(folder / "shards", project)
    scratch, made = root / ".fewstep/scratch", 0
    for size in sizes:
        steps: dict[str, float] = {}
        with timed(steps, "write one shard"):
            for number in range(made, size):
                write_small(scratch / f"{number:05d}", number)
        steps["write one shard"] /= max(1, size - made)
        made = size
        names = {"train": [f"{number:05d}" for number in range(size)]}
        with timed(steps, "check and publish all"):
            publish(scratch, root / DATA, {}, names)
        with timed(steps, "open all"):
            assert ShardSet(root / DATA).rows("train") == 8 * size
        command = [sys.executable, "-m", "tasks.utils.environment", "dvc", "commit", "--force"]
        with timed(steps, "record by DVC"):
            subprocess.run(command, cwd=root, check=True, capture_output=True)
        with timed(steps, "is the next stage up to date?"):
            assert not outdated(root, "student")
        with timed(steps, "name of code, params, data, teacher"):
            fingerprints.inputs_of(root)
        with timed(steps, "name of a folder's content"):
            storage.content_hash(root, root / DATA)
        yield size, steps


def make_project(root: Path, project: Path) -> Path:
    """A DVC project of two stages around the shards."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "data/student").mkdir(parents=True)
    (root / "data/student/student.json").write_text("{}")
    (root / "maker.py").write_text("")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / ".dvc").mkdir()
    shutil.copyfile(project / ".dvc/config", root / ".dvc/config")
    (root / ".dvc/config.local").write_text(WITHOUT_GIT)
    (root / "tasks").symlink_to(project / "tasks")
    (root / "models").symlink_to(project / "models")
    (root / ".dvcignore").write_text("/tasks\n/models\n/.fewstep\n")
    return root


def write_small(place: Path, number: int) -> None:
    """Eight trajectories of a few values, different in every shard."""
    rows = np.arange(8) + 8 * number
    states = np.repeat(rows, 4).reshape(8, 4).astype(np.float32)
    write_shard(place, {"Y": states, "index": rows, "label": np.full(8, -1)})
