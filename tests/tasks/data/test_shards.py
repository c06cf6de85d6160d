from __future__ import annotations

import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.data.shards import (
    CorruptShard,
    ShardSet,
    check_shard,
    publish,
    usable_shard,
    write_shard,
)
from tasks.utils.locks import scratch_lock
from tests.paths import PROJECT

ROWS = (3, 5, 1, 4)


def arrays(start: int, rows: int) -> dict[str, np.ndarray]:
    number = np.arange(start, start + rows)
    path = (number[:, None, None] * 100 + np.arange(12).reshape(3, 4)).astype(np.float16)
    return {"path": path, "label": number.astype(np.int64)}


WHOLE = arrays(0, sum(ROWS))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    start = 0
    for number, rows in enumerate(ROWS):
        write_shard(tmp_path / "scratch" / f"s{number}", arrays(start, rows))
        start += rows
    names = [f"s{number}" for number in range(len(ROWS))]
    dest = tmp_path / "data" / "set"
    publish(
        tmp_path / "scratch", dest, {"grid": [0, 5, 10]}, {"train": names, "validation": names[:1]}
    )
    return dest


def test_same_arrays_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a", arrays(0, 4))
    strided = {name: np.asfortranarray(array) for name, array in reversed(arrays(0, 4).items())}
    second = write_shard(tmp_path / "b", strided)
    assert first == second and first.rows == 4
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "bad",
    [
        {"a": np.zeros(2), "b": np.zeros(3)},
        {"a": np.zeros((0, 3))},
        {},
        {"a": np.array([{}, None], dtype=object)},
    ],
)
def test_write_refuses(tmp_path: Path, bad: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError):
        write_shard(tmp_path / "a", bad)
    assert list(tmp_path.iterdir()) == []


def truncate(shard: Path) -> None:
    file = shard / "path.npy"
    file.write_bytes(file.read_bytes()[:-2])


def flip_bit(shard: Path) -> None:
    content = bytearray((shard / "path.npy").read_bytes())
    content[-3] ^= 4
    (shard / "path.npy").write_bytes(content)


def lose_file(shard: Path) -> None:
    (shard / "path.npy").unlink()


def other_shape(shard: Path) -> None:
    np.save(shard / "path.npy", WHOLE["path"][:3].reshape(3, 12, 1))


def other_dtype(shard: Path) -> None:
    np.save(shard / "path.npy", WHOLE["path"][:3].view(np.int16))


def garble_description(shard: Path) -> None:
    (shard / "shard.json").write_text('{"rows": 3')


def lose_description(shard: Path) -> None:
    (shard / "shard.json").unlink()


DAMAGES = [
    truncate,
    flip_bit,
    lose_file,
    other_shape,
    other_dtype,
    garble_description,
    lose_description,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    shard = tmp_path / "s0"
    assert usable_shard(shard) is None
    info = write_shard(shard, arrays(0, 3))
    assert usable_shard(shard) == info and check_shard(shard, info) == info
    damage(shard)
    with pytest.raises(CorruptShard, match="delete the folder and rerun"):
        check_shard(shard)
    if damage is flip_bit:
        assert check_shard(shard, fast=True) == info  # fast looks at sizes and headers only
    else:
        with pytest.raises(CorruptShard):
            check_shard(shard, fast=True)
    assert usable_shard(shard) is None and not shard.exists()
    assert str(shard) in caplog.text
    assert write_shard(shard, arrays(0, 3)) == info and usable_shard(shard) == info


def test_shard_of_another_set_is_detected(tmp_path: Path) -> None:
    expected = write_shard(tmp_path / "a", arrays(0, 3))
    write_shard(tmp_path / "b", arrays(3, 3))
    with pytest.raises(CorruptShard, match="differs from the manifest"):
        check_shard(tmp_path / "b", expected)


INDICES: list[Any] = [
    0,
    -1,
    np.int64(7),
    slice(None),
    slice(2, 9),
    slice(9, 2, -3),
    slice(4, 4),
    [12, 0, 5, 5, 3],
    np.array([-1, -13, 6]),
    np.arange(13) % 2 == 0,
    np.array([], dtype=np.int64),
    (slice(None), 1),
    ([8, 2, 9], slice(None), 3),
    ([8, 2, 9], slice(0, 2)),
    (4, 2, 1),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_view_indexes_as_the_whole_array_does(published: Path, index: Any) -> None:
    view = ShardSet(published).array("train", "path")
    assert view.shape == WHOLE["path"].shape and view.dtype == np.float16
    found, expected = view[index], WHOLE["path"][index]
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_view_out_of_range(published: Path) -> None:
    view = ShardSet(published).array("train", "label")
    for index in (13, [0, -14]):
        with pytest.raises(IndexError):
            view[index]


def test_view_is_a_copy_and_pickles_small(published: Path) -> None:
    view = ShardSet(published).array("train", "path")
    view[2:4][:] = 0
    np.testing.assert_array_equal(view[:], WHOLE["path"])
    again = pickle.loads(pickle.dumps(view))  # noqa: S301 - what worker processes do with it
    assert again._maps == {} and np.array_equal(again[[12, 1]], WHOLE["path"][[12, 1]])


def test_set_describes_itself(published: Path) -> None:
    shards = ShardSet(published)
    assert shards.meta == {"grid": [0, 5, 10]} and shards.splits == ("train", "validation")
    assert shards.rows("train") == 13 and shards.rows("validation") == 3
    assert shards.names("train") == ("label", "path")
    with pytest.raises(InputError, match="no split test, only train, validation"):
        shards.rows("test")
    with pytest.raises(InputError, match="no array noise, only label, path"):
        shards.array("train", "noise")


def test_set_detects_damage_on_opening(published: Path) -> None:
    shard = published / "train" / "00001"
    content = (shard / "path.npy").read_bytes()
    (shard / "path.npy").unlink()  # hard-linked with the scratch copy
    (shard / "path.npy").write_bytes(content[:-1] + b"?")
    ShardSet(published)
    with pytest.raises(CorruptShard, match=r"00001/path\.npy: its checksum"):
        ShardSet(published, full=True)
    (shard / "path.npy").write_bytes(content[:-1])
    with pytest.raises(CorruptShard, match=rf"{len(content) - 1} bytes, expected {len(content)}"):
        ShardSet(published)


def test_set_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json in it"):
        ShardSet(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not readable as a manifest"):
        ShardSet(tmp_path)


def test_publish_refuses_a_damaged_shard_and_keeps_the_old_set(published: Path) -> None:
    scratch = published.parent.parent / "scratch"
    before = (published / "manifest.json").read_bytes()
    (scratch / "s1" / "label.npy").unlink()
    with pytest.raises(CorruptShard):
        publish(scratch, published, {}, {"train": ["s0", "s1"]})
    assert (published / "manifest.json").read_bytes() == before
    assert [path.name for path in published.parent.iterdir()] == ["set"]


KILLED = """
import os, signal, sys
from pathlib import Path
import tasks.data.shards as shards
real, calls = shards._link_files, []
def link(*args):
    real(*args)
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
shards._link_files = link
shards.publish(Path(sys.argv[1]), Path(sys.argv[2]), {}, {"train": ["s0", "s1", "s2"]})
"""


def test_publish_after_a_kill(published: Path) -> None:
    scratch, dest = published.parent.parent / "scratch", published.parent / "again"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(scratch), str(dest)], cwd=PROJECT, check=False
    )
    assert ended.returncode == -signal.SIGKILL and not dest.exists()
    assert len(list(dest.parent.glob(".again.tmp-*"))) == 1
    publish(scratch, dest, {}, {"train": ["s0", "s1", "s2"]})
    assert ShardSet(dest, full=True).rows("train") == 9
    assert sorted(path.name for path in dest.parent.iterdir()) == ["again", "set"]


def _hold(scratch: Path, ready: Any, release: Any) -> None:
    with scratch_lock(scratch):
        ready.set()
        release.wait(30)


def test_lock_names_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "key", ready, release))
    process.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(InputError, match=f"key: in use by process {process.pid}"),
            scratch_lock(tmp_path / "key", wait_seconds=0),
        ):
            raise AssertionError("two holders")
        threading.Timer(0.5, release.set).start()
        with scratch_lock(tmp_path / "key"):  # waits for the holder to end
            assert release.is_set()
    finally:
        release.set()
        process.join(30)
