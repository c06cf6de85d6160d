"""Running a program in a process that has nothing of this project: diffusers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MINUTES = 10


def run_alone(program: str, arguments: list[str], place: Path) -> str | None:
    """Run the Python text ``program`` by ``python -I`` in the folder ``place``, with no PYTHONPATH
    and no network; None, or the reason in one line where it fails. One that a signal ends
    is run once more.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(place / "modules"), "DO_NOT_TRACK": "1"}
    try:
        ended = _run(program, arguments, place, environment)
        if ended.returncode < 0:  # killed from outside, which says nothing of the folder
            ended = _run(program, arguments, place, environment)
    except subprocess.TimeoutExpired:
        return f"no images after {MINUTES} minutes"
    if ended.returncode == 0:
        return None
    return (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1].strip()


def _run(
    program: str, arguments: list[str], place: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )
