"""A Python program that a large process starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.paths import PROJECT

HELD = 300 * 1024**2


def run_in_fat_parent(code: str, folder: Path = PROJECT) -> str:
    """What `code` prints, run in `folder` by a process that holds HELD bytes."""
    start = f"subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    parent = f"import subprocess, sys; held = bytearray({HELD}); {start}"
    env = {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", parent]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout
