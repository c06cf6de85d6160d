"""Batches of cached teacher paths from memory-mapped shards."""

from __future__ import annotations

import numpy as np
import torch

from models.loop import generator_for
from models.sigdeg import PathBatch
from tasks.shards import ShardSet


class PathBatches:
    """``batches(step, micro, turn)``: this rank's batch of training paths, a function of its arguments alone.

    Every epoch is a fresh permutation of all paths; ranks and micro-batches take consecutive pieces of it, so no path comes
    twice before every other has come once.
    """

    def __init__(
        self,
        shards: ShardSet,
        size: int,
        accumulate: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ):
        self.Y, self.xi, self.labels = (shards.array("train", name) for name in ("Y", "xi", "labels"))
        self.size, self.accumulate, self.seed, self.device = size, accumulate, seed, device
        self.rank, self.world = rank, world
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def rows(self, step: int, micro: int) -> np.ndarray:
        """Indices (size,) of the paths of this rank's batch."""
        first = ((step * self.accumulate + micro) * self.world + self.rank) * self.size
        places = np.arange(first, first + self.size)
        count = len(self.Y)
        return np.concatenate(
            [self._permutation(int(e))[places[places // count == e] % count] for e in np.unique(places // count)]
        )

    def __call__(self, step: int, micro: int, turn: int) -> PathBatch:
        rows = self.rows(step, micro)
        labels = torch.from_numpy(self.labels[rows])
        return PathBatch(
            Y=torch.from_numpy(self.Y[rows]).to(self.device).float(),
            xi=torch.from_numpy(self.xi[rows]).to(self.device).float(),
            labels=None if bool((labels < 0).any()) else labels.to(self.device),
            step=step,
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            order = torch.randperm(len(self.Y), generator=generator_for("cpu", self.seed, 11, epoch))
            self._epoch = (epoch, order.numpy())
        return self._epoch[1]
