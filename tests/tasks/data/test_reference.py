"""The teacher's images in the place of real ones: of paths that no sampler starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from tasks.data import reference
from tasks.data.reference import teacher_reference, to_bytes, training_sample


class Paths:
    """Validation paths whose last state is their number, as states (1, 1, 1)."""

    def __init__(self, labels: list[int]):
        numbers = np.arange(len(labels), dtype=np.float32)
        self.arrays = {"labels": np.array(labels), "Y": np.zeros((len(labels), 3, 1, 1, 1))}
        self.arrays["Y"][:, -1, 0, 0, 0] = numbers

    def rows(self, split: str) -> int:
        return len(self.arrays["Y"])

    def array(self, split: str, name: str) -> np.ndarray:
        return self.arrays[name]


class Teacher:
    device = torch.device("cpu")

    @staticmethod
    def decode(x0: torch.Tensor) -> torch.Tensor:
        return -x0


def given(monkeypatch: pytest.MonkeyPatch, labels: list[int]) -> Any:
    monkeypatch.setattr(reference, "open_trajectories", lambda root: Paths(labels))
    monkeypatch.setattr(reference, "has_data", lambda root: False)
    return Teacher()


def test_other_paths_of_the_same_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    teacher = given(monkeypatch, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    found = teacher_reference(tmp_path, teacher, 2)
    assert (-found).flatten().tolist() == [4, 5, 8, 9]
    assert (-teacher_reference(tmp_path, teacher, 5)).flatten().tolist() == [5, 6, 7, 8, 9]
    unconditional = given(monkeypatch, [-1] * 5)
    assert (-teacher_reference(tmp_path, unconditional, 2)).flatten().tolist() == [2, 3, 4]


def test_paths_of_other_prompts_alone_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = r"validation = 4: of its paths after the first evaluation.samples = 2 0 have one of thei"
    with pytest.raises(InputError, match=line):
        teacher_reference(tmp_path, given(monkeypatch, [0, 1, 2, 3]), 2)


def test_training_images_are_always_the_same_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = given(monkeypatch, [0] * 200)
    first, again = (training_sample(tmp_path, teacher, 70) for _ in range(2))
    assert torch.equal(first, again) and len(first.unique()) == 70
    assert len(training_sample(tmp_path, teacher, 1000)) == 200


def test_bytes() -> None:
    assert to_bytes(torch.tensor([-2.0, -1.0, 0.0, 1.0])).tolist() == [0, 0, 128, 255]
