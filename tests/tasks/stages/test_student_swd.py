"""The student stage with scale-wise distillation: the same stage, loop, checkpoints and selection
as Sig-DEG's.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models.common.errors import InputError
from models.methods.base import MethodContext
from models.methods.export import open_student
from models.methods.swd import gate as scalewise
from models.methods.swd.method import SwD
from models.methods.swd.pipeline import SwDPipeline
from tasks.config.schema import Params
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.methods.context import make_context, real_states
from tasks.stages import student
from tests.tasks.distillation import from_training_split, make_root, stage
from tests.tasks.stages.swd_project import PAIRS, swd_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("swd"))


@pytest.fixture()
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"


def source(root: Path, params: Params, diagnostics: dict[str, Any] | None = None) -> MethodContext:
    shards = open_trajectories(root)
    return make_context(params, root, load_teacher(root), shards, diagnostics)


def batches_of(root: Path, params: Params) -> Any:
    """The batches of training; a measured schedule is taken for granted."""
    (root / "diagnostics.json").write_text(json.dumps({"schedule": PAIRS, "gate": []}))
    return student.build_training(params, root, root, torch.device("cpu")).batches


def test_real_images_reach_the_batches(root: Path) -> None:
    """auto and data take the training split's images; teacher, or no MMD, takes none."""

    def batch(**mmd: Any) -> Any:
        return batches_of(root, swd_settings(method={"mmd": mmd}))(0, 0, 0)

    assert batch(target="teacher").real is None and batch(target="data", weight=0.0).real is None
    for choice in ({}, {"target": "data"}):
        real = batch(**choice).real
        assert real.shape == (4, 1, 8, 8) and from_training_split(root, real)
    teacher = load_teacher(root)
    teacher.num_classes = 10
    with pytest.raises(
        InputError, match=r"method.mmd.target = data: images .* conditional teacher"
    ):
        config = swd_settings(method={"mmd": {"target": "data"}}).method
        real_states(SwD, config, root, teacher)


def test_stage_writes_a_student_that_opens_anywhere(root: Path, tmp_path: Path) -> None:
    student.run(swd_settings(), root)
    folder = root / "data/student"
    record = json.loads((folder / "student.json").read_text())
    assert record["nfe"] == [3] and record["diagnostics"]["schedule"] == PAIRS
    assert [row["size"] for row in record["diagnostics"]["gate"]] == [4, 6, 8]
    curve = pd.read_csv(folder / "history.csv")
    assert curve["step"].iloc[-1] == 4 and np.isfinite(curve["kid_3"]).all()
    pipeline = open_student(folder)
    assert isinstance(pipeline, SwDPipeline)
    expected = pipeline(3, generator=torch.Generator().manual_seed(2), output_type="np").images
    code = f"""if True:
        import numpy, torch
        from diffusers import DiffusionPipeline
        pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, custom_pipeline={str(folder)!r},
                                                 trust_remote_code=True)
        images = pipe(batch_size=3, num_inference_steps=3, generator=torch.Generator().manual_seed(2),
                      output_type="np").images
        numpy.save("images.npy", images)
    """
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert np.allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-5)


def test_a_killed_stage_continues_to_the_same_student(root: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(root, whole)
    params = swd_settings(student={"steps": 4})
    student.run(params, whole)
    kill = """if True:
        import os, tasks.training.trainer
        kept = tasks.training.trainer.Training.save
        def save(self):
            kept(self)
            if self.state.step == 2:
                os.kill(os.getpid(), 9)
        tasks.training.trainer.Training.save = save
    """
    assert stage(root, params, kill).returncode == -9
    assert not (root / "data/student").exists()
    student.run(params, root)
    for name in ("unet/diffusion_pytorch_model.safetensors", "history.csv", "student.json"):
        assert (root / "data/student" / name).read_bytes() == (
            whole / "data/student" / name
        ).read_bytes(), name


def test_gate_switches_dmd_off_where_the_teacher_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([0.9, 0.1, 0.2, 0.1, 0.1, 0.1])  # own, reduced; for sizes 4, 6, 8
    monkeypatch.setattr(scalewise, "_kid", lambda *_: next(values))
    params = swd_settings(
        method={"dmd": {"limit": 3.0, "samples": 16, "steps": 2}, "gan": {"weight": 0.0}}
    )
    given = source(root, params)
    with caplog.at_level(logging.WARNING):
        diagnostics = SwD.prepare(given)
    assert [row["dmd"] for row in diagnostics["gate"]] == [False, True, True]
    assert len(caplog.messages) == 1 and "size 4: KID 0.90000" in caplog.messages[0]
    method = SwD(source(root, params, diagnostics))
    assert [method.updates(i) for i in range(3)] == [
        ("student",),
        ("fake", "student"),
        ("fake", "student"),
    ]
    values = iter(
        [0.25, 0.001, 0.31, 0.001, 0.2, 0.1]
    )  # small images look alike; as good as at full size is enough
    assert [row["dmd"] for row in SwD.prepare(given)["gate"]] == [
        True,
        False,
        True,
    ]
    off = swd_settings(method={"dmd": {"gate": "off"}})
    assert SwD.prepare(source(root, off))["gate"] == []


def test_gate_measures_own_samples_at_each_size_against_reduced_ones(root: Path) -> None:
    params = swd_settings()
    gate = SwD.prepare(source(root, params))["gate"]
    assert all(np.isfinite([row["kid"], row["reduced_kid"]]).all() and row["dmd"] for row in gate)
    assert gate == SwD.prepare(source(root, params))["gate"]  # the same noise every time


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        ({"kind": "given", "pairs": [[1.0, 4], [0.5, 6]]}, "last size is 6; expected 8"),
        ({"kind": "given", "pairs": [[1.0, 3], [0.5, 8]]}, "multiple of 2"),
    ],
)
def test_schedules_that_do_not_fit_the_teacher_are_one_line(
    root: Path, schedule: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        student.run(swd_settings(method={"schedule": schedule}), root)


def test_auto_schedule_comes_from_the_cached_images(root: Path) -> None:
    params = swd_settings(
        method={"schedule": {"kind": "auto", "sigmas": [1.0, 0.6, 0.3], "smallest": 4}}
    )
    diagnostics = SwD.prepare(source(root, params))
    sizes = [size for _, size in diagnostics["schedule"]]
    assert sizes == sorted(sizes) and sizes[0] == 4 and sizes[-1] == 8
    power = np.array(diagnostics["power"])
    lost = power[np.arange(len(power)) > sizes[1] / 2]
    assert (lost * 0.4**2 <= 0.6**2).all()


def test_batches_are_the_ends_of_the_paths_and_other_players_see_others(root: Path) -> None:
    batches = batches_of(root, swd_settings())
    last = torch.from_numpy(open_trajectories(root).array("train", "Y")[:16][:, -1]).float()
    seen = torch.cat([batches(step, 0, 0).x0 for step in range(4)])
    order = torch.cdist(seen.flatten(1), last.flatten(1)).argmin(1)
    assert torch.equal(seen, last[order]) and sorted(order.tolist()) == list(range(16))
    assert not torch.equal(batches(0, 0, 0).x0, batches(0, 0, 1).x0)
    assert torch.equal(batches(3, 0, 1).x0, batches(3, 0, 1).x0) and batches(3, 0, 1).step == 3


def test_rates_and_guidance_reach_the_training(root: Path) -> None:
    params = swd_settings(
        method={"rates": {"fake": 3e-3, "discriminator": None}}, student={"learning_rate": 1e-3}
    )
    diagnostics = {"schedule": PAIRS, "gate": [{"size": 4, "dmd": False}, {"size": 6, "dmd": True}]}
    (root / "diagnostics.json").write_text(json.dumps(diagnostics))
    state = student.build_training(params, root, root, torch.device("cpu")).state
    rates = {
        name: optimizer.param_groups[0]["base"] for name, optimizer in state.optimizers.items()
    }
    assert rates == {"student": 1e-3, "fake": 3e-3, "discriminator": 1e-3}
    guided = swd_settings(trajectories={"guidance": 2.5})
    method = SwD(source(root, guided, diagnostics))
    assert method.context.guidance == 2.5
    assert method.dmd_excluded_sizes == (4,) and method.nfe == (3,)


WATCH = """
import tasks.stages.student
def work(config):
    import tasks.stages.student
    from models.methods.swd.method import SwD
    kept = SwD.loss
    def loss(self, role, batch, generator):
        from ray.train import get_context
        rank, size = get_context().get_world_rank(), self.scale_schedule[self.index(batch.step)].size
        total, terms = kept(self, role, batch, generator)
        with open(f"{config['folder'].root}/seen.{rank}", "a") as file:
            row = (batch.step, role, size, sorted(terms)[0], float(batch.x0.sum()))
            file.write(",".join(map(str, row)) + chr(10))
        return total, terms
    SwD.loss = loss
    tasks.stages.student._work(config)
tasks.stages.student._work = work
"""


@pytest.mark.slow
def test_two_workers_take_one_scale_at_a_time(root: Path) -> None:
    """Every role of both workers is at the same size in the same step, each with images of its
    own.
    """
    params = swd_settings(student={"steps": 3, "workers": 2, "accumulate": 2, "validate_every": 10})
    result = stage(root, params, WATCH)
    assert result.returncode == 0, result.stderr
    names = ["step", "role", "size", "term", "sum"]
    first, second = (pd.read_csv(root / f"seen.{rank}", names=names) for rank in (0, 1))
    assert first[["step", "role", "size"]].equals(second[["step", "role", "size"]])
    assert first.groupby("step")["size"].nunique().eq(1).all() and sorted(
        first["size"].unique()
    ) == [4, 6, 8]
    assert len(first) == 3 * 2 * (1 + 1 + 1) and (first["sum"] != second["sum"]).all()
    named = first[first["term"] != "critic"]
    assert (named["term"].str.rpartition("_")[2].astype(int) == named["size"]).all()
    assert json.loads((root / "data/student/student.json").read_text())["steps"] == 3
