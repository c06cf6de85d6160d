"""Students to be measured: opened before anything is drawn, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.common.errors import InputError
from scripts.measure_emoji_students import opened


def test_a_folder_without_a_student_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: no model_index.json; expected a folder written"):
        opened(tmp_path / "nothing")
