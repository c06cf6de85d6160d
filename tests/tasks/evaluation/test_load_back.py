"""The load-back proof: right for a whole folder, and no for every folder that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.evaluation.load_back import prove_loadable
from tests.models.methods.test_student_pipeline import student


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    student("multistep", classes=3).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def code_of(folder: Path) -> Path:
    return next(folder.glob("multisteppipeline_*.py"))


def test_a_whole_folder(folder: Path) -> None:
    record = prove_loadable(folder)
    assert record["ok"] and record["max_abs_difference"] <= 1e-6 and "reason" not in record
    assert record["images"] == 4 and record["seconds"] > 0


def test_code_that_samples_otherwise(folder: Path) -> None:
    code = code_of(folder)
    text = code.read_text()
    assert "x = level.alpha * seen[-1]" in text
    code.write_text(text.replace("x = level.alpha * seen[-1]", "x = 0.5 * level.alpha * seen[-1]"))
    record = prove_loadable(folder)
    assert not record["ok"] and record["reason"].startswith("other samples, by up to")
    assert record["max_abs_difference"] > 1e-3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: code_of(folder).unlink(), "does not open alone"),
        (
            lambda folder: code_of(folder).write_text(
                "import models\n" + code_of(folder).read_text()
            ),
            "does not open alone",
        ),
    ],
    ids=["no code", "code of the project"],
)
def test_a_folder_that_does_not_open_alone(folder: Path, damage: object, reason: str) -> None:
    damage(folder)  # type: ignore[operator]
    record = prove_loadable(folder)
    assert not record["ok"] and record["max_abs_difference"] is None
    assert reason in record["reason"] and "\n" not in record["reason"]
