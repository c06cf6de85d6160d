"""A Ray worker and the driver are killed; the student is that of a run without Ray, byte for
byte.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.chaos.project import environ, execute, result

COMMAND = [sys.executable, "-m", "tasks.stages.student", "student.workers=1"]


def test_ray_worker_killed(made: Path, before: Callable[[str], Path]) -> None:
    root = before("student")
    done = execute(root, COMMAND, kill="training.step:3")
    assert done.returncode == 0, done.stderr
    assert (root.parent / "mark").read_text().startswith("training.step ")
    assert result(root) == result(made)


def test_ray_driver_killed(made: Path, before: Callable[[str], Path]) -> None:
    root = before("student")
    mark = root.parent / "mark"
    with (root.parent / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            COMMAND,
            cwd=root,
            env=environ(root, hold="training.step:3"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    wait_until(mark.exists, 500)
    worker = int(mark.read_text().split()[1])
    assert worker != driver.pid
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: gone(worker), 120)
    done = execute(root, COMMAND)
    assert done.returncode == 0, done.stderr
    assert result(root) == result(made)


def wait_until(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True
