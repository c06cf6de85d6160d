"""Reading data/teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from models.teachers.base import Denoiser
from models.teachers.loading import load_denoiser


def load_teacher(root: Path, device: torch.device | str = "cpu") -> Denoiser:
    """The teacher of this project's data/teacher, on ``device``."""
    return load_denoiser(root / "data" / "teacher").to(device)
