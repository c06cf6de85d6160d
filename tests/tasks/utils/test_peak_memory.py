from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import pytest

from tasks.utils import peak_memory
from tasks.utils.peak_memory import own_peak
from tests.tasks.utils.fat_parent import HELD, run_in_fat_parent

MIB = 1024**2


def test_memory_that_was_given_back_counts() -> None:
    held = bytearray(HELD)
    held[:: resource.getpagesize()] = b"1" * len(held[:: resource.getpagesize()])
    most = psutil.Process().memory_info().rss
    del held
    assert own_peak() >= most - 16 * MIB and most > HELD


@pytest.mark.skipif(not peak_memory.STATUS.exists(), reason="ru_maxrss is all that there is")
def test_a_child_of_a_large_process_tells_its_own_peak() -> None:
    found = run_in_fat_parent("from tasks.utils.peak_memory import own_peak; print(own_peak())")
    assert MIB < int(found) < HELD // 2


def test_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc tells KiB, ru_maxrss KiB or, on macOS, bytes."""
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t    9000 kB\nVmHWM:\t    2024 kB\n")
    monkeypatch.setattr(peak_memory, "STATUS", status)
    assert own_peak() == 2024 * 1024
    status.write_text("Name:\tpython\n")  # a sandbox that leaves the line out
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert own_peak() >= 1024 * kibibytes > 10 * MIB
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "nothing")
    usage = type("Usage", (), {"ru_maxrss": 5_000_000})
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert own_peak() == 5_000_000
    monkeypatch.setattr(sys, "platform", "linux")
    assert own_peak() == 5_000_000 * 1024
