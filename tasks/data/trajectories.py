"""Reading data/trajectories, and what its parameters mean for a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.sampling.chain import Chain
from models.sampling.grids import adaptive_grid, coarse_grid
from models.sampling.signature import bases
from models.sampling.trajectories import (
    PathSpec,
    movement,
    path_condition,
    path_features,
    path_weights,
)
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance, GuidanceRange
from tasks.config.trajectories import Trajectories
from tasks.data.shards import ShardSet

FEATURES = "xi"


def guidance_of(spec: Trajectories) -> Guidance:
    """The weight of guidance of all paths, or the range in which each has its own."""
    return spec.guidance if spec.guidance_range is None else GuidanceRange(*spec.guidance_range)


def path_spec(
    spec: Trajectories, teacher: Denoiser, points: Sequence[int] | None = None
) -> PathSpec:
    """The chain, grid, signature bases and noise key that ``trajectories`` in params.yaml means for
    a teacher.

    ``points``: the coarse grid, if it is known already, as from a manifest's ``grid_points``; else
    an adaptive grid costs pilot runs of the teacher."""
    chain, guidance = Chain(teacher.schedule.levels(spec.steps), spec.eta), guidance_of(spec)
    kind = "given" if points is not None else spec.grid.kind
    if kind == "adaptive":
        pilot = PathSpec(
            chain, np.zeros(0), (), spec.seed, spec.lane, "float32", guidance, spec.classes
        )
        grid = adaptive_grid(movement(teacher, pilot), spec.intervals)
    else:
        given: Sequence[int] = getattr(spec.grid, "points", ()) if points is None else points
        grid = coarse_grid(chain, spec.intervals, kind, given)
    parts = bases(chain, grid, spec.depth)
    return PathSpec(
        chain, grid, parts, spec.seed, spec.lane, spec.precision, guidance, spec.classes
    )


def cached_spec(params: Trajectories, teacher: Denoiser, shards: ShardSet) -> PathSpec:
    """The spec of an opened cache, its coarse grid read from the manifest."""
    return path_spec(params, teacher, shards.meta["grid_points"])


class PathSet(ShardSet):
    """A published cache: `Y` and `labels` are stored, the features `xi` and the weights of guidance
    are drawn again.
    """

    def array(self, split: str, name: str) -> Any:
        """A view of one array over all paths of a split; raises InputError for an unknown one."""
        return FeatureView(self, split) if name == FEATURES else super().array(split, name)

    def weights(self, split: str, rows: Sequence[int] | np.ndarray) -> Tensor | None:
        """Weights of guidance (n,) float32 of some paths, by number; None where all have one."""
        given = self.meta.get("guidance_range")  # of caches of earlier versions there is none
        if given is None:
            return None
        return path_weights(GuidanceRange(*given), int(self.meta["seed"]), split, list(rows))

    def condition(self, teacher: Denoiser, split: str, count: int) -> Condition | None:
        """The condition of the first ``count`` paths, on the teacher's device."""
        labels = torch.from_numpy(np.array(self.array(split, "labels")[:count]))
        if not teacher.conditional:
            return None
        return path_condition(teacher, labels, self.weights(split, range(count)))


class FeatureView:
    """xi of a split, float32 (n, N, m + 1, *shape), drawn when it is indexed; cheap to pickle.

    view[rows] as of `ArrayView`: rows is an int, a slice, an int array or list, or a bool mask.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shards: ShardSet, split: str) -> None:
        meta = shards.meta
        if "kept" not in meta:
            raise InputError(
                f"{shards.folder}: made by an earlier version, which stored xi; run python -m "
                "tasks.stages.trajectories again"
            )
        self.split, self.seed = split, int(meta["seed"])
        self.kept = np.asarray(meta["kept"], dtype=bool)
        self.shape = (shards.rows(split), *self.kept.shape, *meta["shape"])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> np.ndarray:
        single = isinstance(rows, int | np.integer)
        chosen = np.arange(len(self))[[rows] if single else rows].tolist()
        drawn = path_features(self.seed, self.split, chosen, self.kept, self.shape[3:]).numpy()
        return np.asarray(drawn[0] if single else drawn)


def open_trajectories(root: Path) -> PathSet:
    """The published set; raises InputError if it is missing or damaged."""
    return PathSet(root / "data" / "trajectories")
