from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.utils import progress as module
from tasks.utils.progress import progress, track
from tests.paths import PROJECT


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module, "time", fake)
    return fake


def test_lines_come_at_most_every_ten_seconds(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks.utils.progress")
    with progress("paths", 100) as advance:
        for _ in range(50):
            clock.now += 0.5
            advance(2, loss=0.123456, note="ok")
    assert [record.message for record in caplog.records] == [
        "paths: 40/100, 4/s, 15 s left, loss=0.1235 note=ok",
        "paths: 80/100, 4/s, 5 s left, loss=0.1235 note=ok",
        "paths: 100/100, 4/s, loss=0.1235 note=ok, done in 25.0 s",
    ]


def test_unknown_total(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.utils.progress")
    items = []
    for item in track(iter("abc"), "letters"):
        items.append(item)
        clock.now += 1.0
    assert items == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == ["letters: 3, 1/s, done in 3.0 s"]


def test_no_line_of_success_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.utils.progress")
    with pytest.raises(ZeroDivisionError), progress("paths", 2):
        raise ZeroDivisionError
    assert caplog.records == []


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("outer", 2) as advance:
        advance(1, loss=0.5)
        assert list(track([1, 2, 3], "inner")) == [1, 2, 3]  # bars nest
        advance(1, loss=0.25)
    shown = terminal.getvalue()
    assert "outer" in shown and "2/2" in shown and "loss=0.25" in shown and "3/3" in shown


FOLLOWED = """
import pathlib, sys, time
from tasks.utils import progress
with progress.report_progress_to(pathlib.Path(sys.argv[1])):
    with progress.progress("student", 4) as advance:
        for step in range(4):
            advance(1, loss=f"{step}")
            time.sleep(0.2)
"""


def test_progress_of_another_process_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(module, "NOTE_SECONDS", 0.05)
    place = tmp_path / "progress.json"
    root = PROJECT
    with caplog.at_level(logging.INFO), module.followed(place):
        subprocess.run([sys.executable, "-c", FOLLOWED, str(place)], cwd=root, check=True)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1].startswith("student: 4/4") and "loss=3" in lines[-1] and "done in" in lines[-1]
    assert any(
        line.startswith(("student: 1/4", "student: 2/4", "student: 3/4")) for line in lines[:-1]
    )
    assert not list(tmp_path.iterdir())


def test_a_restart_begins_a_new_bar(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NOTE_SECONDS", 0.05)
    note = module._Note(tmp_path / "progress.json", "student", 10)
    with caplog.at_level(logging.INFO), module.followed(note.place):
        for done in (6, -4):
            note(done)
            time.sleep(0.3)
    finished = [
        record.getMessage().split(",")[0]
        for record in caplog.records
        if "done in" in record.getMessage()
    ]
    assert finished == ["student: 6/10", "student: 2/10"]
