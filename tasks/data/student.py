"""Reading data/student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from models.common.errors import InputError
from models.methods.export import open_student as load_student


def open_student(root: Path, device: torch.device) -> Any:
    """The pipeline in data/student, without encoders of prompts."""
    try:
        return load_student(root / "data" / "student", device, encoders=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"data/student cannot be opened ({first}); run python -m tasks.stages.student again"
        ) from error


def student_diagnostics(root: Path) -> dict[str, Any]:
    """What the student stage measured before training; {} where it kept nothing."""
    record = root / "data" / "student" / "student.json"
    return dict(json.loads(record.read_text()).get("diagnostics") or {}) if record.is_file() else {}
