"""Full disks, folders that cannot be written, damaged files: one line, nothing lost, the next run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.chaos.disks import filled, read_only, small_disk
from tests.chaos.nursery import Nursery
from tests.chaos.project import copy_until, leftovers, result

Before = Callable[[str], Path]


def one_error(output: str) -> str:
    """The only line that speaks of an error; no traceback beside it."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output, output
    return lines[0]


def finish(nursery: Nursery, root: Path, made: Path, *stages: str, says: str = "") -> str:
    """Run the stages again: they end well, with the student of an uninterrupted run and no rubbish."""
    again = nursery.run(root, stages)
    assert again.returncode == 0, again.stdout
    assert re.search(says, again.stdout), again.stdout
    assert result(root) == result(made)
    assert leftovers(root) == []
    return again.stdout


def fills(nursery: Nursery, made: Path, tmp_path: Path, left: int, stage: str, *rest: str, says: str = "") -> None:
    with small_disk(tmp_path / "disk") as disk:
        root = copy_until(made, disk / "project", stage)
        with filled(disk, left):
            failed = nursery.run(root, [stage], output=tmp_path / "output")
            assert failed.returncode == 1, failed.stdout
            assert "no space left on the disk: free some and run again; finished work is kept" in one_error(
                failed.stdout
            )
        finish(nursery, root, made, stage, *rest, says=says)


def test_full_disk_dataset(nursery: Nursery, made: Path, tmp_path: Path) -> None:
    fills(nursery, made, tmp_path, 60_000, "dataset", "teacher", "trajectories", "student")


def test_full_disk_trajectories(nursery: Nursery, made: Path, tmp_path: Path) -> None:
    fills(nursery, made, tmp_path, 80_000, "trajectories", "student", says="; (8|16|24|32) are new")


def test_full_disk_checkpoint(nursery: Nursery, made: Path, tmp_path: Path) -> None:
    fills(nursery, made, tmp_path, 2_600_000, "student", says="resumed at step [024] of 6")


def test_read_only_project(nursery: Nursery, made: Path, before: Before, tmp_path: Path) -> None:
    root = before("student")
    with read_only(root):
        failed = nursery.run(root, ["student"])
        assert failed.returncode == 1, failed.stdout
        assert "the file system is read-only: make it writable and run again" in one_error(failed.stdout)
    finish(nursery, root, made, "student")
