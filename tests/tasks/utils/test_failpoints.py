from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.utils import failpoints
from tests.flows.project import REPOSITORY

PROGRAM = "from tasks.utils.failpoints import reach\nfor name in 'abab':\n    reach(name)\n    print(name, flush=True)\n"


def run(**settings: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | settings
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60
    )


def test_nothing_happens_unless_asked(tmp_path: Path) -> None:
    done = run(FEWSTEP_KILL_MARK=str(tmp_path / "mark"))
    assert (done.returncode, done.stdout.split()) == (0, ["a", "b", "a", "b"])
    assert not list(tmp_path.iterdir())


def test_killed_once_at_the_count(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    asked = {"FEWSTEP_KILL_AT": "b:2", "FEWSTEP_KILL_MARK": str(mark)}
    done = run(**asked)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["a", "b", "a"])
    assert mark.read_text().startswith("b ")
    assert run(**asked).returncode == 0


def test_held_until_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("FEWSTEP_HOLD_AT", "held-in-test")
    monkeypatch.setenv("FEWSTEP_KILL_MARK", str(mark))
    held = threading.Thread(target=failpoints.reach, args=("held-in-test",))
    held.start()
    while not mark.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert held.is_alive()
    failpoints.release(mark)
    held.join(timeout=10)
    assert not held.is_alive()
