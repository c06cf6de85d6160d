"""Trajectories: bytes that depend on the seed alone, shards that outlive kills and damage, one
cache.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from models.sampling.chain import unroll
from models.sampling.grids import subgrid
from models.sampling.signature import basis, chen_join
from models.sampling.trajectories import path_noise
from models.teachers.conditioning import class_condition
from models.teachers.loading import load_denoiser
from tasks.config.schema import Params
from tasks.config.trajectories import Trajectories
from tasks.data import trajectories as loader
from tasks.data.shards import ShardSet
from tasks.data.trajectories import open_trajectories, path_spec
from tasks.stages import trajectories
from tasks.stages.trajectories import run
from tests.tiny import save_teacher

SMALL = {
    "train": 10,
    "validation": 5,
    "steps": 12,
    "intervals": 4,
    "lane": 4,
    "shard_size": 4,
    "batch_size": 8,
}
SMALL |= {"grid": {"kind": "index"}}


def settings(**changes: Any) -> Params:
    section = Trajectories.model_validate(SMALL | changes)
    return Params().model_copy(
        update={"trajectories": section}
    )  # without checks against the student's keys


def make(root: Path, **changes: Any) -> ShardSet:
    run(settings(**changes), root)
    return open_trajectories(root)


def content(shards: ShardSet) -> dict[str, np.ndarray]:
    """All arrays, those that are drawn again, too."""
    names = {split: (*shards.names(split), "xi") for split in shards.splits}
    return {f"{s}/{n}": shards.array(s, n)[:] for s in shards.splits for n in names[s]}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and x.tobytes() == b[name].tobytes() for name, x in a.items()
    )


def files(root: Path) -> dict[str, bytes]:
    folder = root / "data" / "trajectories"
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def scratch_shards(root: Path) -> list[Path]:
    return sorted((root / ".fewstep" / "scratch" / "trajectories").glob("*/*/*-*"))


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


def test_one_cache_serves_fewer_steps(root: Path) -> None:
    """N = 20 joined to 10 and 5 by Chen's identity: the features of the same fine noise on the
    longer intervals.
    """
    twenty = content(make(root, steps=40, intervals=20))
    teacher = load_denoiser(root / "data" / "teacher")
    spec = path_spec(settings(steps=40, intervals=20).trajectories, teacher)
    noise = path_noise(spec, "train", range(10), teacher.shape)[:, 1:].double().numpy()
    for nfe in (10, 5):
        ratio = 20 // nfe
        grid = subgrid(spec.grid, nfe)
        for i in range(nfe):
            parts = spec.parts[i * ratio : (i + 1) * ratio]
            join = chen_join(spec.chain, parts, 2)
            drawn = twenty["train/xi"][:, i * ratio : (i + 1) * ratio].astype(np.float64)
            found = np.einsum("ajb,njbchw->nachw", join, drawn)
            direct = basis(spec.chain, int(grid[i]), int(grid[i + 1]), 2)
            fine = noise[:, direct.lo : direct.hi]
            np.testing.assert_allclose(
                found, np.einsum("ka,nkchw->nachw", direct.Q, fine), atol=1e-5
            )


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


def test_a_cache_that_stored_its_features_is_refused(root: Path) -> None:
    make(root)
    manifest = root / "data/trajectories/manifest.json"
    old = json.loads(manifest.read_text())
    del old["meta"]["kept"]
    manifest.write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"made by an earlier version, which stored xi; run"):
        open_trajectories(root).array("train", "xi")


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


def test_given_grid_and_depth(root: Path) -> None:
    points = [0, 1, 5, 11, 12]
    shards = make(root, grid={"kind": "given", "points": points}, depth=3, dtype="float32")
    assert shards.meta["grid_points"] == points
    xi = shards.array("train", "xi")[:]
    assert xi.shape[2] == 4
    empty = [[bool(np.all(xi[:, i, p] == 0)) for p in range(4)] for i in range(4)]
    assert empty[0] == [False, True, True, True]  # one step: its noise alone
    assert empty[1] == [False, False, False, False]
    assert empty[3] == [True, True, True, True]  # the last step has no noise


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


def test_adaptive_grid_is_measured_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid of a cache is in its scratch folder and manifest; a rerun and a reader take it from
    there.
    """
    real, calls = loader.movement, []
    monkeypatch.setattr(loader, "movement", lambda *given: calls.append(1) or real(*given))
    shards = make(root, grid={"kind": "adaptive"})
    points = shards.meta["grid_points"]
    assert points[0] == 0 and points[-1] == 12 and len(points) == 5 and np.all(np.diff(points) > 0)
    known = files(root)
    (scratch_shards(root)[1] / "Y.npy").unlink()
    make(root, grid={"kind": "adaptive"})
    assert files(root) == known and calls == [1]
    section = settings(grid={"kind": "adaptive"}).trajectories
    teacher = load_denoiser(root / "data" / "teacher")
    assert loader.cached_spec(section, teacher, shards).grid.tolist() == points and calls == [1]
    assert path_spec(section, teacher).grid.tolist() == points


def test_adaptive_grids_share_the_movement_out_and_are_nested(root: Path) -> None:
    """Half the intervals take every second point: students with fewer steps lose nothing by the
    common grid.
    """
    teacher = load_denoiser(root / "data" / "teacher")
    grids = {}
    for intervals in (2, 4, 8):
        section = settings(grid={"kind": "adaptive"}, steps=64, intervals=intervals).trajectories
        grids[intervals] = path_spec(section, teacher).grid
    assert (
        grids[8][::2].tolist() == grids[4].tolist() and grids[8][::4].tolist() == grids[2].tolist()
    )
    pilot = replace(
        path_spec(settings(steps=64, intervals=8).trajectories, teacher), precision="float32"
    )
    travelled = np.append(0.0, np.cumsum(loader.movement(teacher, pilot) ** 0.25))
    moved = np.diff(np.append(travelled[grids[8][:-1]], travelled[-1])) / travelled[-1]
    np.testing.assert_allclose(moved, 1 / 8, atol=1.5 * np.diff(travelled).max() / travelled[-1])
    assert grids[8].tolist() != list(range(0, 65, 8))


def test_more_paths_keep_the_grid(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New paths join old ones on the grid of the old, though the teacher would be measured
    otherwise here.
    """
    points = make(root, grid={"kind": "adaptive"}).meta["grid_points"]
    monkeypatch.setattr(
        loader, "movement", lambda teacher, spec: np.geomspace(1.0, 1e9, spec.chain.steps - 1)
    )
    section = settings(grid={"kind": "adaptive"}).trajectories
    assert path_spec(section, load_denoiser(root / "data" / "teacher")).grid.tolist() != points
    more = make(root, grid={"kind": "adaptive"}, train=section.train + 4)
    assert more.meta["grid_points"] == points and more.rows("train") == section.train + 4
