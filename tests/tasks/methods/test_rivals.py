"""SFD and consistency distillation through the stages: params, training, exact resume, folders that
open alone, and the table of an evaluation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models.common.errors import InputError
from models.methods.export import open_student
from tasks.config.presets import compose
from tasks.config.schema import Params
from tasks.data.trajectories import open_trajectories
from tasks.evaluation.load_back import prove_loadable
from tasks.evaluation.samplers import to_bytes
from tasks.stages import evaluation, student, trajectories
from tests.paths import PROJECT
from tests.tasks.distillation import TRAJECTORIES, make_root, settings, stage
from tests.tasks.stages.test_student import KILL, files, last_state

METHODS = ("sfd", "consistency")


def rival_settings(kind: str, **sections: Any) -> Params:
    sections["trajectories"] = TRAJECTORIES | {"eta": 0.0} | sections.get("trajectories", {})
    return settings(method={"kind": kind}, **sections)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with deterministic paths of a teacher of three classes."""
    root = make_root(tmp_path_factory.mktemp("project"), classes=3)
    trajectories.run(rival_settings("sfd"), root)
    return root


@pytest.fixture(scope="module")
def evaluated(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consistency student, judged beside an SFD student of the same paths."""
    root = tmp_path_factory.mktemp("evaluated") / "project"
    shutil.copytree(made, root)
    student.run(rival_settings("sfd"), root)
    (root / "data/student").rename(root / "data/sfd")
    more = {"samples": 8, "bootstrap": 10, "baselines": ["ddim"], "rivals": ["data/sfd"]}
    params = rival_settings("consistency", evaluation=more | {"neighbours": 2})
    student.run(params, root)
    evaluation.run(params, root)
    return root


def test_deterministic_paths_have_no_features(made: Path) -> None:
    """xi is zero and the paths are a function of their start: DDIM of the whole chain."""
    shards = open_trajectories(made)
    assert shards.meta["eta"] == 0.0 and not np.any(shards.meta["kept"])
    assert not shards.array("train", "xi")[:].any()
    assert shards.array("train", "xi").shape == (16, 4, 3, 1, 8, 8)


@pytest.mark.parametrize("kind", METHODS)
def test_killed_and_rerun_is_uninterrupted(made: Path, tmp_path: Path, kind: str) -> None:
    """SIGKILL after step 5, whose last checkpoint is that of step 4: the rerun gives the same bytes
    of student, history, optimizer, averages and, of consistency, target.
    """
    params = rival_settings(kind, student={"steps": 8})
    roots = [tmp_path / "p", tmp_path / "q"]
    for root in roots:
        shutil.copytree(made / "data", root / "data")
    student.run(params, roots[0])
    killed = stage(roots[1], params, KILL.format(step=5))
    assert killed.returncode == -9, killed.stderr
    assert last_state(roots[1]).name == "step-00000004"
    student.run(params, roots[1])
    assert files(roots[0] / "data/student") == files(roots[1] / "data/student")
    assert files(last_state(roots[0])) == files(last_state(roots[1]))
    history = pd.read_csv(roots[0] / "data/student/history.csv")
    figures = {"sfd": ["path_rmse_4", "path_rmse_2"], "consistency": ["end_rmse"]}[kind]
    assert np.isfinite(history.set_index("step").loc[[0, 8], ["kid_4", "kid_2", *figures]]).all(
        axis=None
    )


def test_folders_open_alone(evaluated: Path) -> None:
    for name, title in (("sfd", "SFD"), ("student", "Consistency")):
        folder = evaluated / "data" / name
        pipeline = open_student(folder)
        assert pipeline.nfe == [2, 4] and pipeline.title == title
        assert f"{title} student" in (folder / "README.md").read_text()
        known = evaluated / "data/evaluation/metrics.json"  # has the proof of data/student
        record = (
            prove_loadable(folder) if name == "sfd" else json.loads(known.read_text())["load_back"]
        )
        assert record["ok"] and record["max_abs_difference"] <= 1e-4, record


def test_both_stand_in_the_table(evaluated: Path) -> None:
    """Rows of both students and of the untrained one; their images are those of the folders."""
    table = pd.read_csv(evaluated / "data/evaluation/table.csv").set_index(["sampler", "nfe"])
    rows = [(name, n) for name in ("student", "untrained", "sfd", "ddim") for n in (4, 2)]
    assert set(rows) <= set(table.index) and np.isfinite(table.loc[rows, "kid"]).all()
    metrics = json.loads((evaluated / "data/evaluation/metrics.json").read_text())
    assert {"to_sfd", "to_untrained"} <= set(metrics["difference"]["nfe2"])
    page = (evaluated / "data/evaluation/report.html").read_text()
    assert "Student Consistency" in page and "SFD student in sfd" in page
    images = np.load(evaluated / "data/evaluation/samples.npz")
    paths = open_trajectories(evaluated)
    noise = torch.from_numpy(paths.array("validation", "Y")[:8][:, 0]).float()
    labels = torch.from_numpy(np.array(paths.array("validation", "labels")[:8]))
    seen = []
    for name, folder in (("student", "student"), ("sfd", "sfd")):
        pipeline = open_student(evaluated / "data" / folder)
        generator = torch.Generator().manual_seed(1_000_003)
        x0, _ = pipeline.rollout(noise, None, {"class_labels": labels}, 2, generator)
        found = images[f"{name}_nfe2"]
        assert np.abs(to_bytes(x0).astype(int) - found).max() <= 1
        seen.append(found.tobytes())
    assert len(set(seen)) == 2


@pytest.mark.parametrize("kind", METHODS)
def test_mistakes_are_told_by_the_params(kind: str) -> None:
    """Before any work, in one line that names the key."""
    wrong = [
        ([], "trajectories.eta = 1.0: method.kind = "),
        (["trajectories.eta=0.5"], "trajectories.eta = 0.5: method.kind = "),
        (["trajectories.eta=0.0", "method.nfe=[99]"], "method.nfe = 99: expected at most"),
        (["trajectories.eta=0.0", "method.nfe=[2, 2]"], "method.nfe = [2, 2]: expected distinct"),
        (["trajectories.eta=0.0", "method.trainable=input"], "method.trainable = "),
    ]
    own = {
        "sfd": (["trajectories.eta=0.0", "method.power=3"], "method.power = 3: expected 1 or 2"),
        "consistency": (
            ["trajectories.eta=0.0", "method.target_decay=1"],
            "method.target_decay = 1: expected a number < 1",
        ),
    }
    for overrides, message in [*wrong, own[kind]]:
        with pytest.raises(InputError) as caught:
            compose(PROJECT, "mnist-calibrated", [f"method.kind={kind}", *overrides])
        told = str(caught.value).removeprefix("preset mnist-calibrated: ")
        assert told.startswith(message) and "\n" not in told


def test_the_presets_share_their_paths() -> None:
    """One cache serves both, and one student each serves four numbers of steps."""
    sfd, consistency = (compose(PROJECT, f"mnist-{kind}") for kind in METHODS)
    assert sfd.trajectories == consistency.trajectories and sfd.trajectories.eta == 0.0
    assert sfd.method.nfe == consistency.method.nfe == (10, 5, 3, 2)
    assert (sfd.dataset, sfd.teacher) == (consistency.dataset, consistency.teacher)
