"""A program ends with its parent; one whose parent lives goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.flows.project import REPOSITORY

CHILD = "import os, pathlib, time; from tasks.utils.parent_death import exit_with_parent; exit_with_parent(); "
CHILD += "pathlib.Path('child').write_text(str(os.getpid())); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait(ready: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, env=env)
    note = tmp_path / "child"
    wait(lambda: note.exists() and note.read_text())
    child = int(note.read_text())
    time.sleep(1.2)  # twice the time between two looks
    assert running(child)
    parent.kill()
    parent.wait()
    wait(lambda: not running(child), 5)
