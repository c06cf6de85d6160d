"""Reading data/teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from models.teachers.base import Denoiser
from models.teachers.loading import load_denoiser, read_record
from models.teachers.prompts import PromptDenoiser
from tasks.data.conditions import open_table


def teacher_source(root: Path) -> str:
    """Where the teacher of data/teacher is from: a hub id, or the name of a folder."""
    source = str(read_record(root / "data" / "teacher").get("source", ""))
    return Path(source).name if Path(source).is_absolute() else source


def load_teacher(root: Path, device: torch.device | str = "cpu") -> Denoiser:
    """The teacher of this project's data/teacher, on ``device``; one of prompts with those of
    data/conditions, and without its encoders.
    """
    folder = root / "data" / "teacher"
    teacher = load_denoiser(folder)
    if isinstance(teacher, PromptDenoiser):
        teacher.set_conditions(open_table(root, read_record(folder).get("fingerprint")))
    return teacher.to(device)
