"""The student stage: exact resume, the untrained start as a candidate, one-line errors, workers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.common.errors import InputError
from models.methods.export import open_student
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.stages import student
from tasks.training.selection import Selection
from tests.tasks.distillation import make_root, settings, stage

# The path error alone: an MMD of two halves of a batch is not that of the whole.
FULL = {"window": {"start": 1, "grow_until": 0.0}, "loss": {"path": 1.0, "mmd": 0.0}}
KILL = """
import os, signal
from tasks.training.trainer import Training
after = Training._after
def killed(self, report, advance):
    after(self, report, advance)
    if report.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
Training._after = killed
"""
SPOIL = """
from models.methods.sigdeg import method as sigdeg
whole, calls = sigdeg.path_loss, []
def spoiled(*arguments):
    calls.append(1)
    return whole(*arguments) * (float("nan") if len(calls) == 4 else 1.0)
sigdeg.path_loss = spoiled
"""
KILL_WORKER = """
import tasks.stages.student
def work(config):
    import os, signal
    import tasks.stages.student
    from tasks.data.batches import PathBatches
    call, mark = PathBatches.__call__, config["folder"].root + "/killed"
    def batch(self, step, micro, update):
        if step == 3 and self.plan.rank == 1 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, step, micro, update)
    PathBatches.__call__ = batch
    tasks.stages.student._work(config)
tasks.stages.student._work = work
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("project"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A project of its own, with everything before the student."""
    shutil.copytree(made / "data", tmp_path / "p" / "data")
    return tmp_path / "p"


def record(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "data/student/student.json").read_text())
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def last_state(root: Path) -> Path:
    """Folder of the newest training checkpoint."""
    return max((root / ".fewstep/scratch/student").glob("*/step-*"), key=lambda path: path.name)


def trained(root: Path, what: str = ".networks.student.") -> dict[str, Tensor]:
    """The student's weights after the last step, or other tensors of the last checkpoint by part of
    name.
    """
    tensors = load_file(last_state(root) / "tensors.safetensors")
    return {name: value for name, value in tensors.items() if what in name}


def told(stderr: str) -> list[str]:
    """The lines of stderr but for progress."""
    return [
        line
        for line in stderr.splitlines()
        if not re.match(r"[\d:]{8} (calibration|student): \d+/\d+, ", line)
    ]


def size(tensors: Iterable[Tensor]) -> float:
    return float(torch.cat([value.flatten().double() for value in tensors]).norm())


def untrained(root: Path) -> dict[str, Tensor]:
    """The teacher's weights, with zeros for the inputs that it does not have: three features and
    the width.
    """
    found: dict[str, Tensor] = dict(load_teacher(root).network.state_dict())
    old = found["conv_in.weight"]
    found["conv_in.weight"] = torch.cat([old, torch.zeros_like(old).repeat(1, 4, 1, 1)], 1)
    return found


@pytest.mark.parametrize("method", [{}, {"trainable": "lora", "lora_rank": 2, "memory": True}])
def test_killed_and_rerun_is_uninterrupted(
    root: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    """SIGKILL after step 5, whose last checkpoint is that of step 4: the rerun gives the same bytes
    of student, history, optimizer and ema_weights.
    """
    params = settings(method=method, student={"steps": 8})
    shutil.copytree(root / "data", tmp_path / "q" / "data")
    student.run(params, root)
    killed = stage(tmp_path / "q", params, KILL.format(step=5))
    assert killed.returncode == -9, killed.stderr
    assert (
        not (tmp_path / "q" / "data/student").exists()
        and last_state(tmp_path / "q").name == "step-00000004"
    )
    student.run(params, tmp_path / "q")
    assert files(root / "data/student") == files(tmp_path / "q" / "data/student")
    assert last_state(root).name == "step-00000008"
    assert files(last_state(root)) == files(last_state(tmp_path / "q"))
    history = pd.read_csv(root / "data/student/history.csv")
    validated = history[history["kid_4"].notna()]["step"].tolist()
    assert (history["step"].tolist(), validated) == ([0, 2, 4, 5, 6, 8], [0, 2, 4, 6, 8])


def test_finished_work_is_only_published_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student.run(settings(), root)
    expected = files(root / "data/student")
    shutil.rmtree(root / "data/student")
    monkeypatch.setattr(student, "_fit", lambda *arguments: pytest.fail("trained again"))
    student.run(settings(), root)
    assert files(root / "data/student") == expected


def test_a_spoiled_student_is_never_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training only makes it worse, the untrained generator is what comes out."""
    growing = iter(range(1, 100))
    monkeypatch.setattr(Selection, "_score", lambda self, nfe: 0.01 * next(growing))
    params = settings()
    student.run(params, root)
    found = record(root)
    assert (found["best_step"], found["steps"]) == (0, 4)
    assert found["scores"] == {"kid_4": 0.01, "kid_2": 0.02}
    weights = open_student(root / "data/student").unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in untrained(root).items())


def test_what_is_published_has_the_best_score(root: Path) -> None:
    """Mean ratio to the untrained KID, over all validations."""
    student.run(
        settings(method=FULL, student={"steps": 12, "learning_rate": 3e-3, "ema": 0.5}), root
    )
    history = pd.read_csv(root / "data/student/history.csv").set_index("step")
    kids = history[["kid_4", "kid_2"]]
    best = (kids / kids.loc[0].clip(lower=1e-3)).mean(axis=1).idxmin()
    found = record(root)
    assert found["best_step"] == best and found["scores"] == kids.loc[best].to_dict()
    assert found["steps"] == 12 and found["nfe"] == [4, 2]
    assert found["teacher"] == load_teacher(root).fingerprint()


def test_no_steps_publish_the_untrained_generator(root: Path) -> None:
    params = settings(student={"steps": 0})
    student.run(params, root)
    assert (record(root)["best_step"], record(root)["steps"]) == (0, 0)
    pipeline = open_student(root / "data/student")
    assert pipeline.nfe == [2, 4]
    weights = pipeline.unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in untrained(root).items())
    assert pd.read_csv(root / "data/student/history.csv")["step"].tolist() == [0]


def test_nan_ends_with_one_line(root: Path) -> None:
    """Status 2, the step, and the last good checkpoint; a rerun with the cause removed goes on from
    there.
    """
    params = settings(student={"steps": 6, "validate_every": 10})
    result = stage(root, params, SPOIL)
    assert result.returncode == 2, result.stderr
    lines = told(result.stderr)
    assert len(lines) == 1 and lines[0].startswith(
        "error: step 4: loss or gradient of student is not finite"
    )
    assert f"last good checkpoint is {last_state(root)}" in lines[0]
    assert last_state(root).name == "step-00000002"
    student.run(params, root)
    assert record(root)["steps"] == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed = 0, trajectories.seed is 1"),
        ({"train": 32}, "train = 16, trajectories.train is 32"),
        ({"steps": 12}, "steps = 8, trajectories.steps is 12"),
        ({"eta": 0.5}, "eta = 1.0, trajectories.eta is 0.5"),
        ({"depth": 3}, "depth = 2, trajectories.depth is 3"),
        ({"precision": "bfloat16"}, "precision = float32, trajectories.precision is bfloat16"),
    ],
)
def test_changed_trajectories_are_told(root: Path, changed: dict[str, Any], message: str) -> None:
    trajectories = {
        "train": 16,
        "validation": 8,
        "steps": 8,
        "intervals": 4,
        "lane": 8,
        "shard_size": 8,
    }
    with pytest.raises(InputError, match=message) as caught:
        student.run(settings(trajectories=trajectories | changed), root)
    assert "tasks.stages.trajectories (or dvc repro) again" in str(
        caught.value
    ) and "\n" not in str(caught.value)
    assert not (root / "data/student").exists()


def test_speed_settings_of_trajectories_do_not_matter(root: Path) -> None:
    student.run(settings(student={"steps": 0}), root)
    trajectories = {
        "train": 16,
        "validation": 8,
        "steps": 8,
        "intervals": 4,
        "lane": 8,
        "shard_size": 16,
    }
    other = settings(
        trajectories=trajectories | {"batch_size": 8, "workers": 2}, student={"steps": 0}
    )
    student.run(other, root)


def test_another_teacher_is_told(root: Path) -> None:
    from tests.tiny import save_teacher

    save_teacher(root, seed=9)
    with pytest.raises(InputError, match="data/trajectories belongs to another teacher"):
        student.run(settings(), root)


def test_all_inputs_name_the_scratch_folder(root: Path) -> None:
    """A result is never taken over when what it depends on has changed."""
    shards = open_trajectories(root)

    def place(**sections: dict[str, Any]) -> Path:
        return student._scratch(settings(**sections), root, shards)

    same = {place(), place(student={"max_failures": 0, "validate_every": 2, "checkpoint_every": 2})}
    assert len(same) == 1
    others = {
        place(student={"seed": 1}),
        place(student={"workers": 1}),
        place(method={"order": 1}),
        place(evaluation={"features": {"kind": "efficientnet"}}),
    }
    manifest = root / "data/dataset/manifest.json"
    content = json.loads(manifest.read_text())
    content["sha256"]["train_images.npy"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert len(same | others | {place()}) == 6


def test_conditional_student(tmp_path: Path) -> None:
    root = make_root(tmp_path, classes=3)
    student.run(settings(student={"steps": 2}), root)
    images = open_student(root / "data/student")(3, class_labels=[0, 1, 2], output_type="pt").images
    assert images.shape == (3, 1, 8, 8) and torch.isfinite(images).all()


def together(root: Path, other: Path, steps: int, code: str = "") -> None:
    """Two workers of 4 paths, after ``code``, against one process of 8.

    Adam divides by the size of a gradient, so the weights whose gradient is 0 but for rounding
    (those of attention's key bias, say) go anywhere; the mean gradients tell exactly.
    """
    choices = {"steps": steps, "validate_every": 100}
    one = settings(method=FULL, student=choices | {"batch_size": 8})
    two = settings(
        method=FULL, student=choices | {"batch_size": 4, "workers": 2, "checkpoint_every": 1}
    )
    shutil.copytree(root / "data", other / "data")
    student.run(one, root)
    result = stage(other, two, code)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert (
        said[-1].startswith("student: best at step")
        and f" student: {steps}/{steps}, " in result.stderr
    )
    lost = [line for line in told(result.stderr) if "a training worker was lost" in line]
    assert told(result.stderr) == lost and len(lost) == bool(code)
    assert len(said) == 1 or code  # Ray tells of a worker that dies
    for what in (".networks.student.", ".exp_avg"):
        expected, found = trained(root, what), trained(other, what)
        assert expected.keys() == found.keys() and len(found) > 50
        apart = size(found[name] - value for name, value in expected.items())
        if what == ".exp_avg":
            assert apart < 1e-4 * size(expected.values())
            continue
        start = untrained(root)
        change = (value - start[name.split(".student.")[1]] for name, value in expected.items())
        assert apart < 0.02 * size(change)
        assert apart / sum(value.numel() for value in expected.values()) ** 0.5 < 1e-4
    assert record(other)["steps"] == steps


def test_two_workers_train_as_one(root: Path, tmp_path: Path) -> None:
    """On gloo: same weights as one process with the union of their batches; a clean terminal and
    folder.
    """
    together(root, tmp_path / "q", 2)
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert names == {"data", ".fewstep", "params.yaml", "stage.py"}
    assert {path.name for path in (tmp_path / "q" / ".fewstep").iterdir()} == {
        "measurements",
        "ray",
        "scratch",
        "stages",
    }


@pytest.mark.slow
def test_a_killed_worker_is_replaced(root: Path, tmp_path: Path) -> None:
    """SIGKILL of rank 1 at step 4: both ranks go on from the last checkpoint and end at the same
    weights.
    """
    together(root, tmp_path / "q", 6, KILL_WORKER)
    assert (tmp_path / "q" / "killed").is_file()


@pytest.mark.slow
def test_nan_in_a_worker_ends_at_once_with_one_line(root: Path) -> None:
    """It would come again: the workers are not started a second time."""
    spoil = SPOIL.replace("\n", "\n    ")
    count = "open(config['folder'].root + '/started', 'a').write('x')"
    code = f"import tasks.stages.student\ndef work(config):{spoil}\n    {count}\n"
    code += "    import tasks.stages.student\n    tasks.stages.student._work(config)\n"
    params = settings(student={"steps": 6, "workers": 1, "max_failures": 2, "validate_every": 10})
    result = stage(root, params, code + "tasks.stages.student._work = work\n")
    assert result.returncode == 2, result.stderr
    lines = told(result.stderr)
    assert len(lines) == 1 and lines[0].startswith(
        "error: step 4: loss or gradient of student is not finite"
    )
    assert (root / "started").read_text() == "x"
