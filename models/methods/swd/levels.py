"""The noise levels at which the losses of SwD look at images."""

from __future__ import annotations

import torch
from torch import Tensor

from models.common.shapes import append_dims
from models.methods.swd.config import LevelRange
from models.methods.swd.schedule import level_of
from models.teachers.base import Denoiser


class NoiseLevels:
    """Random levels of a teacher: times uniform in the lower part of all, or one of a list.

    ``given``: the part in (0, 1], or levels of flow matching in (0, 1], which mean the teacher's
    times of equal signal-to-noise ratio.
    """

    def __init__(self, teacher: Denoiser, given: LevelRange):
        self.teacher = teacher
        self.part: float | None = given if isinstance(given, float) else None
        times = [] if isinstance(given, float) else [level_of(teacher, s)[0] for s in given]
        self.times = torch.tensor(times, dtype=torch.float32)

    def draw(self, n: int, generator: torch.Generator, together: bool = False) -> Tensor:
        """(n,) times on the teacher's device; ``together``: one for all, for losses that compare
        batches.
        """
        schedule, device = self.teacher.schedule, self.teacher.device
        place = torch.rand(1 if together else n, generator=generator, device=device).expand(n)
        if self.part is not None:
            return schedule.snap(schedule.reach(place, self.part))
        count = len(self.times)
        return self.times.to(device)[(place * count).long().clamp(max=count - 1)]

    def contains(self, t: Tensor) -> Tensor:
        """(n,) bool: which times are not above the highest of these."""
        if self.part is not None:
            within: Tensor = t < self.teacher.schedule.reach(1.0, self.part)
            return within
        return t <= float(self.times.max())

    def renoised(
        self,
        x0: Tensor,
        generator: torch.Generator,
        other: Tensor | None = None,
        together: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(t, x_u, y_u): x0 and ``other`` (n, C, H, W) with the same noise at random levels.

        Without ``other`` y_u is the noise.
        """
        t = self.draw(len(x0), generator, together)
        alpha, sigma = (append_dims(v, x0) for v in self.teacher.schedule.alpha_sigma(t))
        eps = sigma * torch.randn(x0.shape, generator=generator, device=x0.device)
        return t, alpha * x0 + eps, eps if other is None else alpha * other + eps


def share_below(inner: LevelRange, outer: LevelRange) -> float:
    """The expected part of levels drawn from ``outer`` that are not above the highest of ``inner``;
    times and levels of flow matching are taken for the same.
    """
    top = inner if isinstance(inner, float) else max(inner)
    if isinstance(outer, float):
        return min(1.0, top / outer)
    return sum(level <= top for level in outer) / len(outer)
