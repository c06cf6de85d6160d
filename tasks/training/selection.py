"""Which weights to keep: rolled-out KID on held-out noise, since path error alone does not track
quality.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.methods.base import DistillationMethod, PathBatch
from models.training.loop import TrainState
from tasks.config.schema import Params
from tasks.data.trajectories import open_trajectories
from tasks.evaluation.validation import ValidationKID
from tasks.training.checkpoints import Checkpoint, save_checkpoint
from tasks.utils.failpoints import reach

PATHS = 64
MIN_KID = 1e-3


class Selection:
    """Scores averaged weights every now and then and keeps the best in ``scratch/best``.

    The score is the mean over the numbers of steps of KID / KID at step 0, against real images of
    the training split; the evaluation's holdout is not touched. ``record`` holds best_step,
    best_score and the KIDs, and travels with checkpoints.
    """

    def __init__(
        self,
        method: DistillationMethod,
        params: Params,
        root: Path,
        scratch: Path,
        device: torch.device,
    ):
        self.method, self.params, self.root = method, params, root
        self.scratch, self.device = scratch, device
        self.record: dict[str, Any] = {}

    def validate(self, step: int, state: TrainState) -> dict[str, float]:
        """Figures for the history: KID by number of steps, and the method's own, of the averaged
        weights.
        """
        network = self.method.pipeline.unet
        live = {name: value.detach().clone() for name, value in network.state_dict().items()}
        averaged = state.ema_state("student")
        network.load_state_dict(averaged)
        network.eval()
        try:
            figures = self._figures()
        finally:
            network.load_state_dict(live)
            network.train()
        self._keep(step, figures, averaged)
        return figures

    def _figures(self) -> dict[str, float]:
        figures = {}
        for nfe in self.method.nfe:
            figures[f"kid_{nfe}"] = self._kid(nfe)
            if self._paths is not None:
                figures |= self.method.validation_figures(nfe, self._paths)
        return figures

    def _keep(self, step: int, figures: dict[str, float], weights: dict[str, Tensor]) -> None:
        kids = {name: value for name, value in figures.items() if name.startswith("kid_")}
        base = self.record.setdefault("untrained", kids)
        score = float(np.mean([value / max(base[name], MIN_KID) for name, value in kids.items()]))
        if score < self.record.get("best_score", np.inf):
            save_checkpoint(self.scratch / "best", step, weights, {"scores": kids}, keep=2)
            reach("selection.kept")
            self.record |= {"best_step": step, "best_score": score, "scores": kids}

    @staticmethod
    def best_weights(scratch: Path, step: int) -> dict[str, Tensor]:
        """The kept weights of ``step``; raises InputError if they were damaged."""
        return Checkpoint(scratch / "best" / f"step-{step:08d}", step).load()[0]

    @cached_property
    def _validation_kid(self) -> ValidationKID:
        return ValidationKID(self.params, self.root, self.method.teacher)

    @cached_property
    def _paths(self) -> PathBatch | None:
        """The first validation paths, for a method that follows paths."""
        if self.method.needs != "paths":
            return None
        shards = open_trajectories(self.root)
        count = min(PATHS, shards.rows("validation"))
        Y, xi, labels = (
            torch.from_numpy(shards.array("validation", name)[:count]).to(self.device)
            for name in ("Y", "xi", "labels")
        )
        condition = self.method.teacher.encode_condition(labels)
        return PathBatch(Y.float(), xi.float(), condition, 0)

    def _kid(self, nfe: int) -> float:
        return self._validation_kid.kid(
            lambda x, condition, g: self.method.sample(x, condition, nfe=nfe, generator=g), nfe
        )
