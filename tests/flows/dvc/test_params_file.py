from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import pytest

from flows.dvc.params_file import apply_overrides, as_list
from models.common.errors import InputError
from tasks.config.schema import load_params
from tests.flows.project import REPOSITORY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "params.yaml").chmod(0o644)
    return tmp_path / "params.yaml"


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [" ".join(line.split()) for line in lines if line.startswith("+ ")]


def test_one_value_changes_one_line(path: Path) -> None:
    before, steps = path.read_text(), load_params(path).student.steps
    params, changes = apply_overrides(path, ["student.steps=777"])
    assert params.student.steps == 777 == load_params(path).student.steps
    assert changes == [f"student.steps: {steps} -> 777"]
    (line,) = changed_lines(before, path.read_text())
    assert line.startswith("+ steps: 777")


def test_the_present_value_changes_nothing(path: Path) -> None:
    before, params = path.read_bytes(), load_params(path)
    _, changes = apply_overrides(path, [f"student.steps={params.student.steps}"])
    assert changes == [] and path.read_bytes() == before


@pytest.mark.parametrize("bad", ["student.step=5", "student.steps=-1", "student", "method.nfe=[7]"])
def test_a_mistake_leaves_the_file_alone(path: Path, bad: str) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError):
        apply_overrides(path, ["student.seed=9", bad])
    assert path.read_bytes() == before


def test_another_variant_of_a_section_drops_the_old_keys(path: Path) -> None:
    params, changes = apply_overrides(path, ["teacher.source=train", "teacher.steps=50"])
    assert (params.teacher.source, params.teacher.steps) == ("train", 50)
    assert (
        "path:" not in path.read_text().split("trajectories:")[0].split("teacher:")[1].split("#")[0]
    )
    assert load_params(path) == params
    assert 'teacher.source: "pretrained" -> "train"' in changes


def test_mappings_become_texts() -> None:
    assert as_list({"student": {"steps": 9, "schedule": "constant"}, "method.nfe": [10, 5]}) == [
        "student.steps=9",
        'student.schedule="constant"',
        "method.nfe=[10, 5]",
    ]
    assert as_list(["a=1"]) == ["a=1"]
