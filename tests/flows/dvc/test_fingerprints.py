from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.dvc import repro as pipeline
from flows.dvc.fingerprints import changed, digests, inputs_of
from flows.dvc.params_file import apply_overrides
from tasks.config.schema import load_params
from tests.flows.project import REPOSITORY, make_project, python


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return make_project(tmp_path / "project")


def watch(root: Path) -> list[str]:
    found = digests(root, root, load_params(root / "params.yaml"))
    apply_overrides(root / "params.yaml", found)
    return found


def test_a_change_shows_in_its_own_part(project: Path) -> None:
    first = inputs_of(project)
    assert inputs_of(project) == first and len(first) == 4
    apply_overrides(project / "params.yaml", ["student.steps=61"])
    assert changed(inputs_of(project), first) == ["params"]
    apply_overrides(project / "params.yaml", ["student.steps=300", "registration.promote=false"])
    assert changed(inputs_of(project), first) == []  # makes no difference to a student
    with (project / "stages/student.py").open("a") as file:
        file.write("\n")
    assert changed(inputs_of(project), first) == ["code"]


def test_new_content_behind_a_path_runs_the_stage(project: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, images=np.zeros((4, 8, 8), np.uint8))
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "weights").write_text("1")
    overrides = ["dataset.kind=npz", f"dataset.path={images}", f"teacher.path={teacher}"]
    apply_overrides(project / "params.yaml", overrides)
    assert [text.partition("=")[0] for text in watch(project)] == [
        "dataset.digest",
        "teacher.digest",
    ]
    first = inputs_of(project)
    assert python(project, "-m", "flows.dvc.repro", "dataset").returncode == 0
    watch(project)
    assert inputs_of(project) == first and not pipeline.outdated(project, "dataset")
    np.savez(images, images=np.ones((4, 8, 8), np.uint8))
    watch(project)
    assert changed(inputs_of(project), first) == ["data"] and pipeline.outdated(project, "dataset")
    (teacher / "weights").write_text("2")
    watch(project)
    assert changed(inputs_of(project), first) == ["data", "teacher"]


def test_what_dvc_watches_needs_no_digest() -> None:
    assert digests(REPOSITORY, REPOSITORY, load_params(REPOSITORY / "params.yaml")) == []
