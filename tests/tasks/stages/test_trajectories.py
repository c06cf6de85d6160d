"""Trajectories: bytes that depend on the seed alone, paths that obey their identity."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from models.sampling.chain import unroll
from models.sampling.trajectories import path_noise
from models.teachers.conditioning import class_condition
from models.teachers.loading import load_denoiser
from tasks.config.trajectories import Trajectories
from tasks.data.trajectories import path_spec
from tasks.stages import trajectories
from tests.tasks.stages.paths_project import (
    SMALL,
    content,
    files,
    make,
    same,
    scratch_shards,
    settings,
)
from tests.tiny import save_teacher


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_teacher(tmp_path)
    return tmp_path


def test_shapes_and_manifest(root: Path) -> None:
    shards = make(root)
    Y, xi, labels = (shards.array("train", name) for name in ("Y", "xi", "labels"))
    assert (Y.shape, Y.dtype) == ((10, 5, 1, 8, 8), np.float16)
    assert (xi.shape, xi.dtype) == ((10, 4, 3, 1, 8, 8), np.float32)
    assert shards.names("train") == ("Y", "labels")  # xi is drawn, not stored
    stored = sum(p.stat().st_size for p in shards.folder.rglob("*.npy"))
    assert stored < 15 * (5 * 64 * 2 + 8) + 2000  # 5 states of 64 pixels, float16, and a label
    assert labels[:].tolist() == [-1] * 10 and shards.rows("validation") == 5
    assert shards.meta["grid_points"] == [0, 3, 6, 9, 12] and shards.meta["shape"] == [1, 8, 8]
    assert shards.meta["teacher"] == load_denoiser(root / "data" / "teacher").fingerprint()
    assert "workers" not in shards.meta and shards.meta["depth"] == 2
    both = np.concatenate([shards.array(split, "Y")[:, 0] for split in shards.splits]).astype(
        np.float64
    )
    assert len(np.unique(both[:, 0, 0, 0])) == 15  # no two paths start alike, over splits too
    assert abs(both.mean()) < 5 / both.size**0.5 and abs(both.std() - 1) < 0.1


def test_bytes_do_not_depend_on_batch_size(root: Path) -> None:
    first = make(root, dtype="float32")
    known, bytes_of = content(first), files(root)
    for batch_size in (4, 12, 64):
        for shard in scratch_shards(root):
            for file in shard.iterdir():
                file.unlink()
            shard.rmdir()
        make(root, dtype="float32", batch_size=batch_size)
        assert files(root) == bytes_of
    assert np.isfinite(known["train/Y"]).all() and not same(
        known, content(make(root, dtype="float32", seed=1))
    )


def test_bytes_do_not_depend_on_threads(root: Path) -> None:
    """Kernels that share a sum out over threads would round differently; the caller's setting is
    left as it was.
    """
    teacher = load_denoiser(root / "data" / "teacher")
    spec = path_spec(settings().trajectories, teacher)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(trajectories.teacher_paths(teacher, spec, "train", 0, 10, batch_size=8))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_content_does_not_depend_on_shards_or_counts(root: Path) -> None:
    known = content(make(root, dtype="float32"))
    for shard_size in (1, 3, 7, 100):
        assert same(content(make(root, dtype="float32", shard_size=shard_size)), known)
    more = content(make(root, dtype="float32", train=13))
    assert more["train/Y"][:10].tobytes() == known["train/Y"].tobytes()


def test_ray_workers_make_the_same_bytes(root: Path) -> None:
    """Two Ray actors, with one thread each, against this process with as many threads as it has."""
    make(root, dtype="float32")
    known = files(root)
    for shard in scratch_shards(root)[::2]:
        (shard / "Y.npy").unlink()
    inodes = {p: p.stat().st_ino for shard in scratch_shards(root)[1::2] for p in shard.iterdir()}
    make(root, dtype="float32", workers=2)
    assert files(root) == known
    assert all(p.stat().st_ino == inode for p, inode in inodes.items())


def test_features_are_drawn_again_row_by_row(root: Path) -> None:
    """Any rows in any order, single or many, are those of the whole; splits and seeds differ."""
    shards = make(root)
    view = shards.array("train", "xi")
    whole = view[:]
    assert len(view) == len(whole) == 10 and view.shape == whole.shape
    rows = np.array([7, 0, 7, 3])
    assert np.array_equal(view[rows], whole[rows]) and np.array_equal(view[4], whole[4])
    assert np.array_equal(view[2:9:3], whole[2:9:3]) and view[[]].shape == (0, *whole.shape[1:])
    mask, again = np.arange(10) % 2 == 1, pickle.loads(pickle.dumps(view))  # noqa: S301
    assert np.array_equal(again[mask], whole[mask])
    first = [
        whole[0],
        shards.array("validation", "xi")[0],
        make(root, seed=1).array("train", "xi")[0],
    ]
    assert len({xi.tobytes() for xi in first}) == 3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", ["index", "logsnr"])
def test_cached_paths_obey_the_identity(root: Path, eta: float, grid: str) -> None:
    """Y_{i+1} - A Y_i - |w| xi_0 is B times an average of denoised images, here replayed from the
    noise.
    """
    changes = {"eta": eta, "grid": {"kind": grid}, "dtype": "float32"}
    stored = content(make(root, **changes))
    teacher = load_denoiser(root / "data" / "teacher")
    spec = path_spec(settings(**changes).trajectories, teacher)
    chain = spec.chain
    noise = path_noise(spec, "train", range(10), teacher.shape)
    x, x0 = noise[:, 0], []
    with torch.no_grad():
        for k in range(chain.steps):
            x0.append(teacher.denoise(x, float(chain.levels.t[k])))
            x = (
                float(chain.a[k]) * x
                + float(chain.b[k]) * x0[-1]
                + float(chain.s[k]) * noise[:, k + 1]
            )
    np.testing.assert_allclose(stored["train/Y"][:, -1], x, atol=1e-3)
    Y, xi = stored["train/Y"].astype(np.float64), stored["train/xi"].astype(np.float64)
    for i, part in enumerate(spec.parts):
        interval = unroll(chain, part.lo, part.hi)
        rest = Y[:, i + 1] - interval.A * Y[:, i] - np.linalg.norm(interval.w) * xi[:, i, 0]
        images = np.stack([v.numpy() for v in x0[part.lo : part.hi]])
        average = np.tensordot(interval.omega, images, 1)
        size = np.abs(images).max()
        np.testing.assert_allclose(
            rest, interval.B * average, atol=1e-4 * max(1.0, interval.B * size)
        )
        assert (average <= images.max(0) + 1e-6 * size).all()


def test_conditional_teacher_with_guidance(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path, classes=3)
    plain = content(make(tmp_path, dtype="float32"))
    assert plain["train/labels"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    chosen = content(make(tmp_path, dtype="float32", classes=[2, 0]))
    assert chosen["train/labels"].tolist() == [2, 0] * 5
    assert chosen["train/Y"][1, 0].tobytes() == plain["train/Y"][1, 0].tobytes()
    assert chosen["train/Y"][4, -1].tobytes() != plain["train/Y"][4, -1].tobytes()
    guided = content(make(tmp_path, dtype="float32", guidance=3.0, steps=4))
    spec = path_spec(settings(guidance=3.0, steps=4).trajectories, teacher)
    noise, labels = path_noise(spec, "train", range(10), teacher.shape), torch.arange(10) % 3
    x, chain = noise[:, 0], spec.chain
    with torch.no_grad():
        for k in range(4):
            x0 = teacher.denoise(x, float(chain.levels.t[k]), class_condition(labels), guidance=3.0)
            x = float(chain.a[k]) * x + float(chain.b[k]) * x0 + float(chain.s[k]) * noise[:, k + 1]
    np.testing.assert_allclose(guided["train/Y"][:, -1], x, atol=1e-3 * float(x.abs().max()))


def test_errors_name_the_key(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    conditional = tmp_path_factory.mktemp("conditional")
    save_teacher(conditional, classes=3)
    cases = [
        (root, {"classes": [1]}, r"classes = \[1\]: this teacher is unconditional"),
        (root, {"guidance": 2.0}, "guidance = 2.0: this teacher has no null condition"),
        (conditional, {"classes": [0, 3]}, r"classes = \[0, 3\]: expected classes in 0\.\.2"),
        (tmp_path_factory.mktemp("nothing"), {}, "teacher"),
    ]
    for where, changes, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            make(where, **changes)
        assert "\n" not in str(caught.value)
        assert not (where / "data" / "trajectories").exists()


def test_half_precision_and_progress(root: Path) -> None:
    """bfloat16 forwards stay near float32 ones; progress counts exactly the wanted network rows."""
    teacher = load_denoiser(root / "data" / "teacher")
    outcomes = {}
    for precision in ("float32", "bfloat16"):
        spec = Trajectories.model_validate(SMALL | {"precision": precision})
        seen: list[int] = []
        paths = path_spec(spec, teacher)
        outcomes[precision] = trajectories.teacher_paths(
            teacher, paths, "train", 2, 9, batch_size=4, advance=seen.append
        )
        assert sum(seen) == 7 * spec.steps
    a, b = outcomes["float32"], outcomes["bfloat16"]
    assert a["Y"].dtype == b["Y"].dtype == np.float32 and np.array_equal(a["Y"][:, 0], b["Y"][:, 0])
    gap = np.abs(a["Y"] - b["Y"]).max() / np.abs(a["Y"]).max()
    assert 0 < gap < 0.1
