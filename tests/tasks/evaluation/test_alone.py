"""Programs that run without the project."""

from __future__ import annotations

from pathlib import Path

from tasks.evaluation.alone import run_alone

KILLED = """
import os, pathlib, signal, sys
mark = pathlib.Path("mark")
mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
if len(mark.read_text()) <= int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_program_that_was_killed_is_run_once_more(tmp_path: Path) -> None:
    """A kill from outside is no verdict on the folder; it stood in the figures for ever."""
    assert run_alone(KILLED, ["1"], tmp_path) is None
    assert (tmp_path / "mark").read_text() == "xx"


def test_one_that_is_killed_again_has_failed(tmp_path: Path) -> None:
    assert run_alone(KILLED, ["9"], tmp_path) == "exit code -9"
    assert (tmp_path / "mark").read_text() == "xx"


def test_the_last_line_of_an_error_is_the_reason(tmp_path: Path) -> None:
    assert run_alone("raise SystemExit('no such folder')", [], tmp_path) == "no such folder"
