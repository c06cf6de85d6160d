"""Shards of trajectories that outlive kills and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.common.errors import InputError
from tasks.data.shards import ShardSet
from tasks.data.trajectories import open_trajectories
from tasks.stages import trajectories
from tests.tasks.stages.paths_project import files, make, scratch_shards
from tests.tiny import save_teacher


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_teacher(tmp_path)
    return tmp_path


def test_killed_in_the_middle_keeps_finished_shards(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = make_elsewhere(root)
    real = trajectories.write_shard
    written: list[Path] = []

    def dies(directory: Path, arrays: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(directory)
        return real(directory, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(trajectories, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            make(root)
    assert not (root / "data" / "trajectories").exists()
    kept = {
        p: (p.stat().st_ino, p.stat().st_mtime_ns)
        for shard in scratch_shards(root)
        for p in shard.iterdir()
    }
    assert len(scratch_shards(root)) == 2 and scratch_shards(root) == sorted(written)
    written.clear()
    monkeypatch.setattr(trajectories, "write_shard", lambda d, a: written.append(d) or real(d, a))
    make(root)
    assert len(written) == 3 and files(root) == known
    assert all((p.stat().st_ino, p.stat().st_mtime_ns) == state for p, state in kept.items())
    written.clear()
    make(root)
    assert written == [] and files(root) == known


def make_elsewhere(root: Path) -> dict[str, bytes]:
    other = root / "other"
    save_teacher(other)
    make(other)
    return files(other)


def truncate(file: Path) -> None:
    content = file.read_bytes()[:-100]
    file.unlink()
    file.write_bytes(content)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("name", ["Y.npy", "labels.npy", "shard.json"])
def test_damaged_shards_in_scratch_are_made_again(
    root: Path, damage: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(root)
    known = files(root)
    shards = scratch_shards(root)
    whole = shards[2] / "Y.npy"
    before = whole.stat().st_ino
    damage(shards[1] / name)
    make(root)
    assert files(root) == known and whole.stat().st_ino == before
    assert "damaged shard will be made again" in caplog.text and str(shards[1]) in caplog.text


def test_damage_in_the_published_set_is_named(root: Path) -> None:
    make(root)
    folder = root / "data" / "trajectories"
    flip(folder / "train" / "00001" / "Y.npy")
    open_trajectories(root)  # sizes alone are checked every time
    with pytest.raises(InputError, match=r"train/00001/Y\.npy: its checksum differs") as caught:
        ShardSet(folder, full=True)
    assert "\n" not in str(caught.value)
    truncate(folder / "validation" / "00000" / "Y.npy")
    with pytest.raises(InputError, match=r"validation/00000/Y\.npy: \d+ bytes, expected \d+"):
        open_trajectories(root)
    make(root)  # scratch still has them
    ShardSet(folder, full=True)


def test_a_cache_that_stored_its_features_is_refused(root: Path) -> None:
    make(root)
    manifest = root / "data/trajectories/manifest.json"
    old = json.loads(manifest.read_text())
    del old["meta"]["kept"]
    manifest.write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"made by an earlier version, which stored xi; run"):
        open_trajectories(root).array("train", "xi")
