from __future__ import annotations

import io
import logging
import sys

import pytest

from tasks import progress as module
from tasks.progress import progress, track


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


def test_lines_come_at_most_every_ten_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.progress")
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
    caplog.set_level(logging.INFO, logger="tasks.progress")
    items = []
    for item in track(iter("abc"), "letters"):
        items.append(item)
        clock.now += 1.0
    assert items == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == ["letters: 3, 1/s, done in 3.0 s"]


def test_no_line_of_success_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.progress")
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
