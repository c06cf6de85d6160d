"""Training batches from memory-mapped arrays: cached teacher paths, their ends, or training data.

A batch is a function of (step, micro-batch, update, rank) alone, so that a resumed run sees what an
unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.methods.base import ImageBatch, Needs, PathBatch
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition, class_condition
from models.teachers.guidance import with_weights
from tasks.data.dataset import data_kind, load_split
from tasks.data.shards import ShardSet
from tasks.data.trajectories import PathSet

READ = 256  # paths read at once


@dataclass(frozen=True)
class BatchPlan:
    """``size`` rows for each of ``accumulate`` micro-batches on each of ``world`` ranks."""

    size: int
    accumulate: int
    seed: int
    device: torch.device
    rank: int = 0
    world: int = 1


class States(Protocol):
    """Clean states of a teacher, (r, *shape) for r row numbers; a tensor is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor: ...


class TrainingStates:
    """The training split as :class:`States`, encoded as they are asked for; ``labels`` (n,)."""

    def __init__(self, root: Path, teacher: Denoiser):
        self.stored, self.labels = load_split(root, "train")
        self.kind, self.teacher = data_kind(root), teacher

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Any, /) -> Tensor:
        data = self.kind.to_float(self.stored[rows])
        return self.teacher.encode(data.to(self.teacher.device))


class Rows:
    """Which of ``len(labels)`` rows make this rank's batch at (step, micro, update).

    Every epoch is a fresh permutation of all rows; ranks and micro-batches take consecutive pieces
    of it, so no row comes twice before every other has come once. Other updates of a step (other
    networks) go other ways. ``real``: clean states of training data, set by those whose loss needs
    some beside the rows; ``encode``: from labels to the network's condition; ``weights``: from rows
    to their weights of guidance, or None where all have one.
    """

    def __init__(self, labels: Any, plan: BatchPlan):
        self.labels, self.plan = labels, plan
        self.real: States | None = None
        self.encode: Callable[[Tensor], Condition | None] = class_condition
        self.weights: Callable[[np.ndarray], Tensor | None] = lambda rows: None
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, step: int, micro: int, update: int = 0) -> np.ndarray:
        """Indices (size,) of this rank's batch."""
        plan, count = self.plan, len(self.labels)
        first = ((step * plan.accumulate + micro) * plan.world + plan.rank) * plan.size
        places = np.arange(first, first + plan.size)
        epochs = places // count
        pieces = [
            self._permutation(int(e), update)[places[epochs == e] % count]
            for e in np.unique(epochs)
        ]
        return np.concatenate(pieces)

    def _permutation(self, epoch: int, update: int) -> np.ndarray:
        if update not in self._orders or self._orders[update][0] != epoch:
            key = (epoch, update) if update else (epoch,)
            generator = generator_for("cpu", self.plan.seed, 11, *key)
            order = torch.randperm(len(self.labels), generator=generator)
            self._orders[update] = (epoch, order.numpy())
        return self._orders[update][1]

    def __call__(self, step: int, micro: int, update: int) -> Any:
        raise TypeError("Rows alone is no batch; use PathBatches or ImageBatches")

    def _condition(self, rows: np.ndarray) -> Condition | None:
        condition = self.encode(torch.from_numpy(self.labels[rows]).to(self.plan.device))
        weights = self.weights(rows)
        if condition is None or weights is None:
            return condition
        return with_weights(condition, weights)

    def _real(self, step: int, micro: int) -> Tensor | None:
        """As many of ``real`` at random, (size, *shape)."""
        if self.real is None:
            return None
        key = generator_for("cpu", self.plan.seed, 17, step, micro, self.plan.rank)
        rows = torch.randint(len(self.real), (self.plan.size,), generator=key).numpy()
        return self.real[rows].to(self.plan.device)


class PathBatches(Rows):
    """``batches(step, micro, update)``: teacher paths with their features."""

    def __init__(self, shards: ShardSet, plan: BatchPlan):
        super().__init__(shards.array("train", "labels"), plan)
        self.Y, self.xi = (shards.array("train", name) for name in ("Y", "xi"))

    def __call__(self, step: int, micro: int, update: int) -> PathBatch:
        rows = self.rows(step, micro)
        Y, xi = (
            torch.from_numpy(array[rows]).to(self.plan.device).float()
            for array in (self.Y, self.xi)
        )
        return PathBatch(Y, xi, self._condition(rows), step, self._real(step, micro))


class ImageBatches(Rows):
    """``batches(step, micro, update)``: the ends of teacher paths, its images."""

    def __init__(self, shards: ShardSet, plan: BatchPlan):
        super().__init__(shards.array("train", "labels"), plan)
        Y = shards.array("train", "Y")
        lows = range(0, len(Y), READ)
        self.x0 = np.concatenate([Y[low : min(low + READ, len(Y))][:, -1] for low in lows])

    def __call__(self, step: int, micro: int, update: int) -> ImageBatch:
        rows = self.rows(step, micro, update)
        x0 = torch.from_numpy(self.x0[rows]).to(self.plan.device).float()
        return ImageBatch(x0, self._condition(rows), step, self._real(step, micro))


class DataBatches(Rows):
    """``batches(step, micro, update)``: training data in the teacher's state space."""

    def __init__(self, root: Path, teacher: Denoiser, plan: BatchPlan):
        self.states = TrainingStates(root, teacher)
        super().__init__(self.states.labels, plan)

    def __call__(self, step: int, micro: int, update: int) -> ImageBatch:
        rows = self.rows(step, micro, update)
        x0 = self.states[rows].to(self.plan.device)
        return ImageBatch(x0, self._condition(rows), step, self._real(step, micro))


def batches_for(
    needs: Needs, root: Path, teacher: Denoiser, shards: ShardSet, plan: BatchPlan
) -> Rows:
    """The batches that a method needs."""
    made: Rows
    if needs == "data":
        if teacher.condition_kind == "prompts":
            raise InputError(
                "method.kind: it trains on images of the dataset, whose prompts are not among "
                "those of data/conditions; use a method that learns from the teacher's images, "
                "such as sigdeg, swd or sfd"
            )
        made = DataBatches(root, teacher, plan)
    else:
        made = (PathBatches if needs == "paths" else ImageBatches)(shards, plan)
        if isinstance(shards, PathSet):
            made.weights = partial(shards.weights, "train")
    made.encode = teacher.encode_condition
    return made
