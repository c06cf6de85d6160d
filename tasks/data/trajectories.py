"""Reading data/trajectories, and what its parameters mean for a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from models.sampling.chain import Chain
from models.sampling.grids import adaptive_grid
from models.sampling.grids import coarse_grid
from models.sampling.signature import bases
from models.sampling.trajectories import PathSpec
from models.sampling.trajectories import movement
from models.teachers.base import Denoiser
from pathlib import Path
from tasks.config.trajectories import Trajectories
from tasks.data.shards import ShardSet
import numpy as np



def path_spec(spec: Trajectories, teacher: Denoiser, points: Sequence[int] | None = None) -> PathSpec:
    """The chain, grid, signature bases and noise key that ``trajectories`` in params.yaml means for
    a teacher.

    ``points``: the coarse grid, if it is known already, as from a manifest's ``grid_points``; else
    an adaptive grid costs pilot runs of the teacher. """
    chain = Chain(teacher.schedule.levels(spec.steps), spec.eta)
    kind = "given" if points is not None else spec.grid.kind
    if kind == "adaptive":
        pilot = PathSpec(chain, np.zeros(0), (), spec.seed, spec.lane, "float32", spec.guidance, spec.classes)
        grid = adaptive_grid(movement(teacher, pilot), spec.intervals)
    else:
        given: Sequence[int] = getattr(spec.grid, "points", ()) if points is None else points
        grid = coarse_grid(chain, spec.intervals, kind, given)
    parts = bases(chain, grid, spec.depth)
    return PathSpec(chain, grid, parts, spec.seed, spec.lane, spec.precision, spec.guidance, spec.classes)


def cached_spec(params: Trajectories, teacher: Denoiser, shards: ShardSet) -> PathSpec:
    """The spec of an opened cache, its coarse grid read from the manifest."""
    return path_spec(params, teacher, shards.meta["grid_points"])


def open_trajectories(root: Path) -> ShardSet:
    """The published set; raises InputError if it is missing or damaged."""
    return ShardSet(root / "data" / "trajectories")
