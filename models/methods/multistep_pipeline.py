"""A ready-made pipeline for students that predict the clean state at every step. A copy of this
file travels in the student's folder (models/methods/student_pipeline.py), so it imports nothing
else of this project.

    x0 = skip_i x_i + out_i to_x0(network(x_i, t_i))          one network call; 0 and 1 if unsaid

and then, with fresh noise (multistep consistency sampling, Song et al. 2023, algorithm 1) or with
the noise that x0 leaves of x_i (DDIM, Song et al. 2021),

    fresh:      x_{i+1} = alpha_{i+1} x0 + sigma_{i+1} eps
    predicted:  x_{i+1} = alpha_{i+1} x0 + sigma_{i+1} (x_i - alpha_i x0) / sigma_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from models.methods.student_pipeline import Generators, OnStep, StudentPipeline, normals

NOISES = ("fresh", "predicted")


@dataclass(frozen=True)
class Level:
    """A time of the network, with its alpha and sigma, and the weights of x and of the network's x0
    in the answer. ``steps``: the number of steps of the schedule that it belongs to.
    """

    t: float
    alpha: float
    sigma: float
    skip: float = 0.0
    out: float = 1.0
    steps: int = 1

    @classmethod
    def of(cls, row: Sequence[float], steps: int) -> Level:
        """From (t, alpha, sigma) or (t, alpha, sigma, skip, out); ValueError for another length."""
        if len(row) not in (3, 5):
            raise ValueError(f"level {list(row)}: expected t, alpha, sigma, or skip and out too")
        t, alpha, sigma, *rest = map(float, row)
        skip, out = rest or (0.0, 1.0)
        return cls(t, alpha, sigma, skip, out, steps)


def ddim_step(level: Level, alpha: float, sigma: float, x: Tensor, x0: Tensor) -> Tensor:
    """The state at (alpha, sigma) from x at ``level`` with the noise that x0 leaves of it."""
    kept = sigma / level.sigma
    return kept * x + (alpha - level.alpha * kept) * x0


class MultistepPipeline(StudentPipeline, DiffusionPipeline):  # type: ignore[misc]
    """Samples of a student that predicts the clean state.

    ``levels``: {number of steps: (t, alpha, sigma), or with skip and out after them, of every step,
    from noise to data}; ``title``: the method's name for tables; ``noise``: of the steps after the
    first, "fresh" or "predicted"; ``steps_input``: the network is given one channel more than a
    state has, 1 / number of steps; the rest as for every student.
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
        noise: str = "fresh",
        steps_input: bool = False,
        vae: Any = None,
    ):
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"noise {noise!r}: expected {' or '.join(NOISES)}")
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
            noise=noise,
            steps_input=steps_input,
        )
        self.title = title
        self._levels = {int(n): [Level.of(row, int(n)) for row in own] for n, own in given.items()}

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
        """x0 (n, *shape) from x at ``level``; differentiable."""
        inputs = x
        if self.config.steps_input:
            inputs = torch.cat([x, torch.full_like(x[:, :1], 1 / level.steps)], 1)
        x0 = self.clipped(self.network_x0(self.unet, inputs, x, level, condition))
        return x0 if (level.skip, level.out) == (0.0, 1.0) else level.skip * x + level.out * x0

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
        """(x0, the x0 of every step) from start noise; ``xi``: the fresh noise of steps 2 .. N."""
        x = noise
        seen: list[Tensor] = []
        before: Level | None = None
        for i, level in enumerate(self.levels(nfe)):
            if before is not None and self.config.noise == "predicted":
                x = ddim_step(before, level.alpha, level.sigma, x, seen[-1])
            elif before is not None:
                eps = normals(x.shape, x.device, generator) if xi is None else xi[i - 1]
                x = level.alpha * seen[-1] + level.sigma * eps
            seen.append(self.denoise(level, x, condition))
            before = level
            if on_step is not None:
                on_step()
        return seen[-1], seen
