"""The coarse grid of trajectories: given, measured once, joined to fewer steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.sampling.grids import subgrid
from models.sampling.signature import basis, chen_join
from models.sampling.trajectories import path_noise
from models.teachers.loading import load_denoiser
from tasks.data import trajectories as loader
from tasks.data.trajectories import path_spec
from tests.tasks.stages.paths_project import content, files, make, scratch_shards, settings
from tests.tiny import save_teacher


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_teacher(tmp_path)
    return tmp_path


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
