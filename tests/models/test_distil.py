"""The one-call interface: a student of every method from a teacher in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from models.common.errors import InputError
from models.distil import distil
from models.methods.export import open_student
from tests.tiny import tiny_teacher

SMALL = {"paths": 16, "batch_size": 4, "fine_steps": 8, "intervals": 4, "steps": 2}
PLAIN = {**SMALL, "calibrate": False}


def images_of(student: object, steps: int) -> torch.Tensor:
    made: torch.Tensor = student(  # type: ignore[operator]
        batch_size=3,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images
    return made


def test_a_sigdeg_student_samples_and_is_saved(tmp_path: Path) -> None:
    student = distil(tiny_teacher(), nfe=(4, 2), **PLAIN)
    images = images_of(student, 2)
    assert images.shape == (3, 1, 8, 8) and bool(torch.isfinite(images).all())
    student.save_pretrained(tmp_path)
    assert torch.equal(images_of(open_student(tmp_path), 2), images)


def test_training_changes_the_student_and_equal_seeds_repeat_it() -> None:
    arguments = {**PLAIN, "nfe": (4,), "learning_rate": 1e-2}
    first, again, none = (
        distil(tiny_teacher(), **arguments | more) for more in ({}, {}, {"steps": 0})
    )
    assert torch.equal(images_of(first, 4), images_of(again, 4))
    assert not torch.equal(images_of(first, 4), images_of(none, 4))


def test_an_swd_student_samples() -> None:
    schedule = {"kind": "given", "pairs": [[1.0, 4], [0.5, 8]]}
    student = distil(tiny_teacher(), "swd", schedule=schedule, dmd={"gate": "off"}, **SMALL)
    assert images_of(student, 2).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("method", ["sfd", "consistency"])
def test_students_of_deterministic_paths(method: str, tmp_path: Path) -> None:
    student = distil(tiny_teacher(), method, nfe=(4, 2), **SMALL)
    images = images_of(student, 2)
    assert images.shape == (3, 1, 8, 8) and bool(torch.isfinite(images).all())
    student.save_pretrained(tmp_path)
    assert torch.equal(images_of(open_student(tmp_path), 2), images)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="nfes"):
        distil(tiny_teacher(), nfes=(4,), **PLAIN)


@pytest.mark.parametrize("method", ["sigdeg", "swd"])
def test_what_needs_real_images_is_refused(method: str) -> None:
    more = {} if method == "sigdeg" else {"schedule": {"kind": "given", "pairs": [[1.0, 8]]}}
    with pytest.raises(InputError, match="no real images"):
        distil(tiny_teacher(), method, **SMALL, **more)
