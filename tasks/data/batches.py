"""Batches of cached teacher paths from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.random import generator_for
from models.methods.sigdeg.method import PathBatch
from models.methods.swd.method import ImageBatch
from models.teachers.conditioning import Condition, class_condition
from tasks.data.shards import ShardSet

READ = 256


class Rows:
    """Which paths make this rank's batch at (step, micro, update): a function of its arguments
    alone.

    Every epoch is a fresh permutation of all paths; ranks and micro-batches take consecutive pieces
    of it, so no path comes twice before every other has come once. Other turns of a step (other
    networks) go other ways. ``images``: uint8 (r, C, H, W) training images, set by those whose loss
    needs real ones beside the paths; ``encode``: from labels to the network's condition.
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
        self.Y, self.labels = (shards.array("train", name) for name in ("Y", "labels"))
        self.size, self.accumulate, self.seed, self.device = size, accumulate, seed, device
        self.rank, self.world = rank, world
        self.images: np.ndarray | None = None
        self.encode: Callable[[Tensor], Condition | None] = class_condition
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, step: int, micro: int, update: int = 0) -> np.ndarray:
        """Indices (size,) of the paths of this rank's batch."""
        first = ((step * self.accumulate + micro) * self.world + self.rank) * self.size
        places = np.arange(first, first + self.size)
        count = len(self.Y)
        return np.concatenate(
            [self._permutation(int(e), update)[places[places // count == e] % count] for e in np.unique(places // count)]
        )

    def _permutation(self, epoch: int, update: int) -> np.ndarray:
        if update not in self._orders or self._orders[update][0] != epoch:
            key = (epoch, update) if update else (epoch,)
            order = torch.randperm(len(self.Y), generator=generator_for("cpu", self.seed, 11, *key))
            self._orders[update] = (epoch, order.numpy())
        return self._orders[update][1]

    def __call__(self, step: int, micro: int, update: int) -> Any:
        raise TypeError("Rows alone is no batch; use PathBatches or ImageBatches")

    def _condition(self, rows: np.ndarray) -> Condition | None:
        return self.encode(torch.from_numpy(self.labels[rows]).to(self.device))

    def _real(self, step: int, micro: int) -> Tensor | None:
        """As many of ``images`` at random, (size, C, H, W) in [-1, 1]."""
        if self.images is None:
            return None
        key = generator_for("cpu", self.seed, 17, step, micro, self.rank)
        rows = torch.randint(len(self.images), (self.size,), generator=key).numpy()
        return (torch.from_numpy(self.images[rows]).float() / 127.5 - 1).to(self.device)


class PathBatches(Rows):
    """``batches(step, micro, update)``: teacher paths with their features, for Sig-DEG; as many
    ``images``, if set.
    """

    def __init__(self, shards: ShardSet, *settings: Any, **more: Any):
        super().__init__(shards, *settings, **more)
        self.xi = shards.array("train", "xi")

    def __call__(self, step: int, micro: int, update: int) -> PathBatch:
        rows = self.rows(step, micro)
        Y, xi = (torch.from_numpy(array[rows]).to(self.device).float() for array in (self.Y, self.xi))
        return PathBatch(Y, xi, self._condition(rows), step, self._real(step, micro))


class ImageBatches(Rows):
    """``batches(step, micro, update)``: the ends of teacher paths, its images, for SwD; as many
    ``images``, if set.
    """

    def __init__(self, shards: ShardSet, *settings: Any, **more: Any):
        super().__init__(shards, *settings, **more)
        count = len(self.Y)
        self.x0 = np.concatenate([self.Y[low : min(low + READ, count)][:, -1] for low in range(0, count, READ)])

    def __call__(self, step: int, micro: int, update: int) -> ImageBatch:
        rows = self.rows(step, micro, update)
        x0 = torch.from_numpy(self.x0[rows]).to(self.device).float()
        return ImageBatch(x0, self._condition(rows), step, self._real(step, micro))
