"""Full disks, folders that cannot be written, damaged files: one line, nothing lost, the next run
goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.chaos.checks import check_registry, flip, one_error
from tests.chaos.disks import filled, read_only, small_disk
from tests.chaos.forkserver import ForkServer
from tests.chaos.project import copy_until, leftovers, result

Before = Callable[[str], Path]


def finish(forkserver: ForkServer, root: Path, made: Path, *stages: str, says: str = "") -> str:
    """Run the stages again: they end well, with the student of an uninterrupted run and no
    rubbish.
    """
    again = forkserver.run(root, stages)
    assert again.returncode == 0, again.stdout
    assert re.search(says, again.stdout), again.stdout
    assert result(root) == result(made)
    assert leftovers(root) == []
    return again.stdout


def fills(
    forkserver: ForkServer,
    made: Path,
    tmp_path: Path,
    left: int,
    stage: str,
    *rest: str,
    says: str = "",
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        root = copy_until(made, disk / "project", stage)
        with filled(disk, left):
            failed = forkserver.run(root, [stage], output=tmp_path / "output")
            assert failed.returncode == 1, failed.stdout
            assert (
                "no space left on the disk: free some and run again; finished work is kept"
                in one_error(failed.stdout)
            )
        finish(forkserver, root, made, stage, *rest, says=says)


def test_full_disk_dataset(forkserver: ForkServer, made: Path, tmp_path: Path) -> None:
    fills(forkserver, made, tmp_path, 60_000, "dataset", "teacher", "trajectories", "student")


def test_full_disk_trajectories(forkserver: ForkServer, made: Path, tmp_path: Path) -> None:
    fills(
        forkserver, made, tmp_path, 80_000, "trajectories", "student", says="; (8|16|24|32) are new"
    )


def test_full_disk_checkpoint(forkserver: ForkServer, made: Path, tmp_path: Path) -> None:
    fills(forkserver, made, tmp_path, 2_600_000, "student", says="resumed at step [024] of 6")


def test_full_disk_registration(forkserver: ForkServer, recorded: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        root = copy_until(recorded, disk / "project")
        with filled(disk, 1_300_000):
            failed = forkserver.run(root, ["flows.register"], output=tmp_path / "output")
            assert failed.returncode == 1, failed.stdout
            assert "no space left on the disk" in one_error(failed.stdout)
        again = forkserver.run(root, ["flows.register"])
        assert again.returncode == 0 and "chaos version 1" in again.stdout, again.stdout
        check_registry(root, versions=1)


def test_read_only_project(
    forkserver: ForkServer, made: Path, before: Before, tmp_path: Path
) -> None:
    root = before("student")
    with read_only(root):
        failed = forkserver.run(root, ["student"])
        assert failed.returncode == 1, failed.stdout
        assert "the file system is read-only: make it writable and run again" in one_error(
            failed.stdout
        )
    finish(forkserver, root, made, "student")


def test_damaged_shard(forkserver: ForkServer, made: Path, before: Before) -> None:
    root = before("trajectories")
    assert forkserver.run(root, ["trajectories"], kill="trajectories.shard:3").returncode == -9
    first = min((root / ".fewstep/scratch/trajectories").glob("*/train/*/Y.npy"))
    with first.open("r+b") as file:
        file.truncate(200)
    output = finish(forkserver, root, made, "trajectories", "student", says="; 24 are new")
    assert re.search(r"damaged shard will be made again: .*/Y\.npy: 200 bytes, expected", output)


def test_damaged_trajectories(forkserver: ForkServer, made: Path, before: Before) -> None:
    root = before("student")
    with (root / "data/trajectories/train/00001/Y.npy").open("r+b") as file:
        file.truncate(100)
    failed = forkserver.run(root, ["student"])
    assert failed.returncode == 2 and "Y.npy: 100 bytes, expected" in one_error(failed.stdout)
    finish(forkserver, root, made, "trajectories", "student")


def test_damaged_checkpoint(forkserver: ForkServer, made: Path, before: Before) -> None:
    root = before("student")
    assert forkserver.run(root, ["student"], kill="training.step:5").returncode == -9
    flip(max((root / ".fewstep/scratch/student").glob("*/step-*")) / "tensors.safetensors")
    output = finish(forkserver, root, made, "student", says="resumed at step 2 of 6")
    assert re.search(
        r"skipped a damaged checkpoint: .*step-00000004/tensors.safetensors: its checksum differs",
        output,
    )


def test_damaged_best_weights(forkserver: ForkServer, made: Path, before: Before) -> None:
    root = before("student")
    assert forkserver.run(root, ["student"], kill="student.trained").returncode == -9
    flip(max((root / ".fewstep/scratch/student").glob("*/best/step-*")) / "tensors.safetensors")
    output = finish(
        forkserver, root, made, "student", says="training starts over: .*its checksum differs"
    )
    assert "resumed" not in output


def test_damaged_notes(forkserver: ForkServer, made: Path, before: Before) -> None:
    root = before("trajectories")
    assert (
        forkserver.run(root, ["trajectories", "student"], kill="student.trained").returncode == -9
    )
    scratch = root / ".fewstep/scratch"
    notes = [*scratch.glob("trajectories/*/grid.json"), *scratch.glob("student/*/diagnostics.json")]
    notes += scratch.glob("student/*/result.json")
    for path in notes:
        path.write_text('{"half')
    output = finish(
        forkserver, root, made, "trajectories", "student", says="resumed at step 6 of 6"
    )
    assert len(notes) == 3 and output.count("is damaged and will be made again") == 3


def test_damaged_weights(forkserver: ForkServer, made: Path, before: Before) -> None:
    root = before("evaluation")
    for folder, stage in (("student", "evaluation"), ("teacher", "trajectories")):
        path = root / "data" / folder / "unet/diffusion_pytorch_model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        failed = forkserver.run(root, [stage])
        assert failed.returncode == 2 and str(path.parent.parent) in one_error(failed.stdout)
        path.write_bytes(whole)
    finish(forkserver, root, made, "evaluation")
