"""Which weights to keep: rolled-out quality on held-out noise, by `student.criterion`, since path
error alone does not track it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.own_weights import load_own_weights, own_weights
from models.common.shapes import rows_at_once
from models.evaluation.registry import criterion_class
from models.methods.base import DistillationMethod, PathBatch
from models.training.loop import TrainState
from models.training.sharding import Share, gathered
from tasks.config.schema import Params
from tasks.data.trajectories import open_trajectories
from tasks.evaluation.validation import ValidationScore
from tasks.training.checkpoints import Checkpoint, save_checkpoint
from tasks.utils.failpoints import reach

PATHS = 64


class Selection:
    """Scores averaged weights every now and then and keeps the best in ``scratch/best``.

    The score is the mean over the numbers of steps of the criterion divided by its value at step 0
    (the other way round where higher is better), against real images of the training split; the
    evaluation's holdout is not touched. ``record`` holds best_step, best_score and the criterion's
    values, and travels with checkpoints. Workers that ``share`` sharded networks all make the
    samples, with the same noise; the figures are those of the first.
    """

    def __init__(
        self,
        method: DistillationMethod,
        params: Params,
        root: Path,
        scratch: Path,
        device: torch.device,
        share: Share | None = None,
    ):
        self.method, self.params, self.root = method, params, root
        self.scratch, self.device, self.share = scratch, device, share or Share()
        self.criterion = criterion_class(params.student.criterion, "student.criterion")
        self.record: dict[str, Any] = {}

    def validate(self, step: int, state: TrainState) -> dict[str, float]:
        """Figures for the history: the criterion by number of steps, and the method's own, of the
        averaged weights.
        """
        network = self.method.pipeline.unet
        own = own_weights(network, network.state_dict())
        live = {name: value.detach().clone() for name, value in own.items()}
        averaged = own_weights(network, state.ema_state("student"))
        load_own_weights(network, averaged)
        network.eval()
        try:
            figures = self.share.from_first(self._figures())
        finally:
            load_own_weights(network, live)
            network.train()
        self._keep(step, figures, averaged)
        return figures

    def _figures(self) -> dict[str, float]:
        figures = {}
        for nfe in self.method.nfe:
            figures[f"{self.criterion.name}_{nfe}"] = self._score(nfe)
            if self._paths is not None:
                figures |= self.method.validation_figures(nfe, self._paths)
        return figures

    def _keep(self, step: int, figures: dict[str, float], weights: dict[str, Tensor]) -> None:
        names = [f"{self.criterion.name}_{nfe}" for nfe in self.method.nfe]
        scores = {name: figures[name] for name in names if name in figures}
        base = self.record.setdefault("untrained", scores)
        score = float(np.mean([self._ratio(value, base[name]) for name, value in scores.items()]))
        if score < self.record.get("best_score", np.inf):
            whole = gathered(weights, keep=self.share.rank == 0)
            if self.share.rank == 0:
                save_checkpoint(self.scratch / "best", step, whole, {"scores": scores}, keep=2)
                reach("selection.kept")
            self.record |= {"best_step": step, "best_score": score, "scores": scores}

    def _ratio(self, value: float, base: float) -> float:
        """How much worse than the untrained generator; below 1 is better."""
        floor = self.criterion.floor
        if self.criterion.lower_is_better:
            return value / max(base, floor)
        # NaN stays NaN, which is never kept; max() would hide it.
        return base / (value if value > floor or value != value else floor)

    @staticmethod
    def best_weights(scratch: Path, step: int) -> dict[str, Tensor]:
        """The kept weights of ``step``; raises InputError if they were damaged."""
        return Checkpoint(scratch / "best" / f"step-{step:08d}", step).load()[0]

    @cached_property
    def _validation(self) -> ValidationScore:
        return ValidationScore(self.params, self.root, self.method.teacher)

    @cached_property
    def _paths(self) -> PathBatch | None:
        """The first validation paths, for a method that follows paths."""
        if self.method.needs != "paths":
            return None
        shards = open_trajectories(self.root)
        most = rows_at_once(self.method.teacher.shape, PATHS)
        count = min(most, shards.rows("validation"))
        Y, xi = (
            torch.from_numpy(shards.array("validation", name)[:count]).to(self.device)
            for name in ("Y", "xi")
        )
        condition = shards.condition(self.method.teacher, "validation", count)
        return PathBatch(Y.float(), xi.float(), condition, 0)

    def _score(self, nfe: int) -> float:
        return self._validation.score(
            lambda x, condition, g: self.method.sample(x, condition, nfe=nfe, generator=g), nfe
        )
