"""SFD: simple and fast distillation (Zhou et al. 2024, arXiv 2409.19681), the deterministic case.

The teacher's paths have eta = 0, so the start noise alone decides them. The student G takes N of
the grid's steps, one network call each: DDIM (models/methods/multistep_pipeline.py) with a trained
network in the place of the teacher's. It is trained at the coarse times only, along its own
rollout, against the teacher's fine path Y from the same noise,

    x_0 = Y_0,   x_{i+1} = kept_i sg(x_i) + (alpha_{i+1} - alpha_i kept_i) G(sg(x_i), t_i),
    kept_i = sigma_{i+1} / sigma_i                                                             (18)
    L = mean_i |x_{i+1} - Y_{i+1}| / alpha_{i+1}                                               (19)

sg stops the gradient: every step learns to come back to the path from where the steps before it
have led, and is not asked to make up for those after it. States are compared as x / alpha, the
coordinates of the paper. With several numbers of steps the network is given 1 / N as one more
channel (the paper's SFD-v), since the same time is asked for steps of different width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.methods.base import (
    DistillationMethod,
    Losses,
    MethodContext,
    PathBatch,
    without_dropout,
)
from models.methods.costs import Call, Costs, Updates
from models.methods.multistep_pipeline import Level, MultistepPipeline, ddim_step
from models.methods.ode_paths import grid_levels, multistep_student, ode_spec
from models.methods.sfd_config import SFDConfig
from models.sampling.grids import places
from models.teachers.conditioning import Condition


class SFDCosts(Costs):
    """A step of every schedule is one call; all of a rollout are held for the backward pass."""

    def __init__(self, context: MethodContext, real: bool = False):
        super().__init__(context, real)
        self.channels += len(self.config.nfe) > 1  # 1 / N, where there are several

    def updates(self, step: int, micro: int = 0) -> Updates:
        nfe = self.config.nfe[step % len(self.config.nfe)]
        return [("student", [Call("student", 1, "weights")] * nfe)]

    def sampling(self, nfe: int) -> Sequence[Call]:
        return [Call("student")] * nfe

    def figures(self, nfe: int) -> Sequence[Call]:
        return self.sampling(nfe)


class SFD(DistillationMethod):
    """The method, with one role, ``student``; the numbers of steps take turns."""

    name = "sfd"
    Config = SFDConfig
    needs = "paths"
    config: SFDConfig
    pipeline: MultistepPipeline

    def __init__(self, context: MethodContext):
        super().__init__(context)
        without_dropout(self.networks)

    @classmethod
    def costs(cls, context: MethodContext, real: bool = False) -> SFDCosts:
        return SFDCosts(context, real)

    @classmethod
    def check_sharding(cls, config: Any) -> None:
        """Nothing to refuse: what is called depends on the step alone."""

    @classmethod
    def untrained(cls, context: MethodContext) -> MultistepPipeline:
        """DDIM on the coarse grid around a copy of the teacher's network."""
        spec, numbers = ode_spec(context), context.config.nfe
        levels = {nfe: grid_levels(spec, nfe) for nfe in numbers}
        several = len(numbers) > 1
        return multistep_student(context, levels, "SFD", noise="predicted", steps_input=several)

    def loss(self, role: str, batch: PathBatch, generator: torch.Generator) -> Losses:
        """(19) on one batch of cached paths."""
        nfe = self.config.nfe[batch.step % len(self.config.nfe)]
        targets = self._targets(batch.Y, nfe)
        states = self._states(batch.Y[:, 0], nfe, batch.condition)
        errors = [
            ((x - y) / alpha).abs().pow(self.config.power).mean()
            for x, y, (alpha, _) in zip(states, targets, self._ends(nfe), strict=True)
        ]
        error = torch.stack(errors).mean()
        return error, {f"path_{nfe}": error}

    def _states(self, x: Tensor, nfe: int, condition: Condition | None) -> list[Tensor]:
        """The states x_1 .. x_N of (18), (n, *shape) each, from start noise x."""
        states: list[Tensor] = []
        for level, (alpha, sigma) in zip(self.pipeline.levels(nfe), self._ends(nfe), strict=True):
            x0 = self._denoise(level, x, condition).float()
            states.append(ddim_step(level, alpha, sigma, x, x0))
            x = states[-1].detach()
        return states

    def _denoise(self, level: Level, x: Tensor, condition: Condition | None) -> Tensor:
        return self.checkpointed(self.pipeline.denoise, level, x, condition)

    def _ends(self, nfe: int) -> list[tuple[float, float]]:
        """(alpha, sigma) where the steps end: at the next level, the last one at clean data."""
        return [(level.alpha, level.sigma) for level in self.pipeline.levels(nfe)[1:]] + [(1.0, 0)]

    def _targets(self, Y: Tensor, nfe: int) -> tuple[Tensor, ...]:
        """The teacher's states Y_1 .. Y_N, (n, *shape) each, of cached ones (n, intervals + 1,
        *shape).
        """
        ends = places(Y.shape[1] - 1, nfe)[1:]
        return Y[:, torch.as_tensor(ends, device=Y.device)].unbind(1)

    @torch.no_grad()
    def validation_figures(self, nfe: int, paths: PathBatch) -> dict[str, float]:
        """RMSE of the last state to the teacher's, from the same noise."""
        last = self._states(paths.Y[:, 0], nfe, paths.condition)[-1]
        return {f"path_rmse_{nfe}": float((last - paths.Y[:, -1]).square().mean().sqrt())}
