"""Reading data/teacher."""

from __future__ import annotations

from models.teachers.base import Teacher
from pathlib import Path
import torch



def load_teacher(root: Path, device: torch.device | str = "cpu") -> Teacher:
    """The teacher of this project's data/teacher, on ``device``."""
    return Teacher.load(root / "data" / "teacher").to(device)
