"""A ready-made pipeline for students that predict the clean state at every step: multistep
consistency sampling (Song et al. 2023, algorithm 1). A copy of this file travels in the student's
folder (models/methods/student_pipeline.py), so it imports nothing else of this project.

    x0      = to_x0(network(x_i, t_i))               one network call
    x_{i+1} = alpha_{i+1} x0 + sigma_{i+1} eps       fresh noise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from models.methods.student_pipeline import Generators, OnStep, StudentPipeline, normals


@dataclass(frozen=True)
class Level:
    """A time of the network, with its alpha and sigma."""

    t: float
    alpha: float
    sigma: float


class MultistepPipeline(StudentPipeline, DiffusionPipeline):  # type: ignore[misc]
    """Samples of a student that predicts the clean state.

    ``levels``: {number of steps: (t, alpha, sigma) of every step, from noise to data}; ``title``:
    the method's name for tables; the rest as for every student.
    """

    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self,
        unet: Any,
        levels: dict[str, list[list[float]]] | None = None,
        title: str = "Student",
        prediction_type: str = "epsilon",
        shape: list[int] | None = None,
        clip: float | None = None,
        num_classes: int | None = None,
        scaling: dict[str, list[float]] | None = None,
        vae: Any = None,
    ):
        super().__init__()
        given = levels or {}
        self.register_modules(unet=unet, vae=vae)
        self.register_to_config(
            levels={n: [list(map(float, level)) for level in own] for n, own in given.items()},
            title=title,
            prediction_type=prediction_type,
            shape=list(shape or (1, 16, 16)),
            clip=clip,
            num_classes=num_classes,
            scaling=scaling,
        )
        self.title = title
        self._levels = {
            int(n): [Level(*level) for level in own] for n, own in (levels or {}).items()
        }

    @property
    def nfe(self) -> list[int]:
        """Numbers of steps this student was made for, ascending."""
        return sorted(self._levels)

    def levels(self, steps: int | None = None) -> list[Level]:
        """The levels of so many steps; ValueError for another number."""
        return self._levels[self.check_steps(steps)]

    def denoise(
        self, level: Level, x: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """x0 (n, C, H, W) from x at ``level``; differentiable."""
        return self.clipped(self.network_x0(self.unet, x, x, level, condition))

    @torch.no_grad()
    def rollout(
        self,
        noise: Tensor,
        xi: Sequence[Tensor] | None = None,
        condition: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(x0, the x0 of every step) from start noise; ``xi``: the noise of steps 2 .. N."""
        x = noise
        seen: list[Tensor] = []
        for i, level in enumerate(self.levels(nfe)):
            if i:
                eps = normals(x.shape, x.device, generator) if xi is None else xi[i - 1]
                x = level.alpha * seen[-1] + level.sigma * eps
            seen.append(self.denoise(level, x, condition))
            if on_step is not None:
                on_step()
        return seen[-1], seen
