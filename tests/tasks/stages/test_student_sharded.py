"""The student stage with sharded networks: through Ray Train, killed, and gone on with by another
number of workers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from models.common.errors import InputError
from tasks.data.trajectories import open_trajectories
from tasks.stages import student
from tasks.training.ray_cluster import workers_with_room
from tasks.training.selection import Selection
from tests.paths import PROJECT
from tests.tasks.distillation import make_root, settings, stage
from tests.tasks.stages.test_student import told

SHARDED = {
    "sharding": "full",
    "accumulate": 2,
    "steps": 4,
    "validate_every": 2,
    "checkpoint_every": 1,
}
WHOLE = {"window": {"start": 1, "grow_until": 0.0}, "calibrate": False}
# The weights that are kept are the worst, which are trained ones here, not those of the start.
WORST = """
import tasks.stages.student
def work(config):
    import os, signal
    import tasks.stages.student
    import tasks.training.sharded_checkpoints as files
    from tasks.training.selection import Selection
    Selection._ratio = lambda self, value, base: base / value
    saved, save = [], files.dcp.save
    def save_parts(*given, **options):  # dies when all parts are written, and nothing else
        save(*given, **options)
        saved.append(given)
        if len(saved) == {dies}:
            os.kill(os.getpid(), signal.SIGKILL)
    files.dcp.save = save_parts
    tasks.stages.student._work(config)
tasks.stages.student._work = work
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("project"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "data", tmp_path / "p" / "data")
    return tmp_path / "p"


def params(**choices: Any) -> Any:
    return settings(method=WHOLE, student=SHARDED | choices)


def result(root: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, torch.Tensor]]:
    """student.json, history.csv and the exported weights."""
    folder = root / "data" / "student"
    record = json.loads((folder / "student.json").read_text())
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return record, pd.read_csv(folder / "history.csv"), weights


def equal(root: Path, other: Path) -> None:
    """Two results that differ by rounding: Adam turns 1e-7 of a gradient into as much of a step of
    1e-3, and of all of it where the gradient itself is rounding.
    """
    (record, history, weights), (again, found, others) = result(root), result(other)
    assert list(history.columns) == list(found.columns)
    for name, column in history.items():
        assert found[name].to_numpy() == pytest.approx(
            column.to_numpy(), rel=2e-3, abs=1e-5, nan_ok=True
        ), name
    assert record["best_step"] == again["best_step"] and record["steps"] == again["steps"]
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert others[name].shape == value.shape
        assert float((others[name] - value).abs().max()) < 5e-3
    apart = sum(float((others[n] - v).square().sum()) for n, v in weights.items())
    assert apart < 1e-5 * sum(float(v.square().sum()) for v in weights.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_make_the_student_of_one_process(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations, best weights, export; killed in its third checkpoint and gone on with by this
    process alone, the student is the same once more.
    """
    other, third = tmp_path / "q", tmp_path / "r"
    for place in (other, third):
        shutil.copytree(root / "data", place / "data")
    monkeypatch.setattr(Selection, "_ratio", lambda self, value, base: base / value)
    student.run(params(), root)
    assert result(root)[0]["best_step"] > 0
    ended = stage(other, params(workers=2), WORST.format(dies=0))
    assert ended.returncode == 0, ended.stderr
    assert told(ended.stderr) == []
    equal(root, other)

    killed = stage(third, params(workers=2, max_failures=0), WORST.format(dies=3))
    assert killed.returncode != 0 and not (third / "data" / "student").exists()
    (scratch,) = (third / ".fewstep/scratch/student").glob("*/")
    steps = sorted(path.name for path in scratch.glob("step-*"))
    assert steps == ["step-00000000", "step-00000001"]  # of two that are kept
    names = {path.name for path in (scratch / steps[-1]).iterdir()}
    assert names == {
        "checkpoint.json",
        "state.json",
        "tensors.safetensors",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
    }
    student.run(params(), third)
    assert list(scratch.parent.glob("*/")) == [
        scratch
    ]  # the same place, and so the same checkpoints
    equal(root, third)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_elastic_workers_train_the_same_with_fewer(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster with room for two of four workers: two share the step's batches out."""
    alone = tmp_path / "alone"
    shutil.copytree(root / "data", alone / "data")
    monkeypatch.setattr(Selection, "_ratio", lambda self, value, base: base / value)
    student.run(params(accumulate=4), alone)
    workers = {"env_vars": {"PYTHONPATH": str(PROJECT)}}
    room = f"import ray\nray.init(num_cpus=2, include_dashboard=False, runtime_env={workers})"
    ended = stage(root, params(accumulate=4, workers=4, elastic=True), room + WORST.format(dies=0))
    assert ended.returncode == 0, ended.stderr
    assert "room for 2 of 4 workers (2 CPUs): going on with 2" in ended.stderr
    equal(root, alone)


def test_mistakes_are_one_line(root: Path) -> None:
    with pytest.raises(ValueError, match=r"accumulate = 2: sharding = full .* workers = 3"):
        params(workers=3)
    with pytest.raises(ValueError, match=r"elastic = true: .* expected sharding = full with it"):
        params(sharding="none", elastic=True)
    with pytest.raises(ValueError, match="precision = float16"):
        params(precision="float16")
    with pytest.raises(ValueError, match="optimizer = adamw8bit"):
        params(optimizer="adamw8bit")
    narrow = settings(method={"window": {"start": 2}}, student=SHARDED)
    with pytest.raises(InputError, match="student.sharding = full: method.window.start = 2"):
        student.run(narrow, root)


@pytest.mark.parametrize(
    ("wanted", "fewer", "there", "found", "line"),
    [
        (3, [1], {"CPU": 4.0}, 3, ""),
        (3, [1], {"CPU": 2.0}, 1, "room for 2 of 3 workers (2 CPUs): going on with 1"),
        (8, [1, 2, 4], {"CPU": 64.0, "GPU": 5.0}, 4, "room for 5 of 8 workers (5 GPUs): going on"),
        (3, [], {"CPU": 2.0}, 3, "room for 2 of 3 workers (2 CPUs): waiting until it has more"),
        (2, [1], {}, 2, "room for 0 of 2 workers (0 CPUs): waiting until it has more"),
    ],
)
def test_workers_that_there_is_room_for(
    wanted: int,
    fewer: list[int],
    there: dict[str, float],
    found: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    assert workers_with_room(wanted, fewer) == found
    assert line in caplog.text and (line or not caplog.text)


def test_the_place_of_unfinished_work_does_not_depend_on_the_workers(root: Path) -> None:
    shards = open_trajectories(root)
    places = {student._scratch(params(workers=n), root, shards) for n in (0, 1, 2)}
    places.add(student._scratch(params(workers=2, elastic=True), root, shards))
    assert len(places) == 1
    plain = settings(method=WHOLE, student=SHARDED | {"sharding": "none"})
    assert student._scratch(plain, root, shards) not in places
