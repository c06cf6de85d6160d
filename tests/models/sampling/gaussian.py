"""A teacher whose data is Gaussian, where every answer is known."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from models.teachers.base import Denoiser
from models.teachers.reading import read_schedule

MEAN, STD = 0.3, 0.5


class GaussianNetwork(nn.Module):
    """Exact predictions for data N(MEAN, STD^2) per pixel; counts its calls."""

    def __init__(self, prediction: str, schedule: Any):
        super().__init__()
        self.prediction, self.schedule = prediction, schedule
        self.calls: list[float] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append(float(t[0]))
        alpha, sigma = self.schedule.level(float(t[0]))
        x0 = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        eps = (x - alpha * x0) / sigma
        return {
            "epsilon": lambda: eps,
            "sample": lambda: x0,
            "v_prediction": lambda: alpha * eps - sigma * x0,
            "flow": lambda: eps - x0,
        }[self.prediction]()


class GaussianTeacher(Denoiser):
    def __init__(self, prediction: str = "epsilon", scheduler: Any = None) -> None:
        if scheduler is None:
            scheduler = (
                FlowMatchEulerDiscreteScheduler()
                if prediction == "flow"
                else DDPMScheduler(prediction_type=prediction, clip_sample=False)
            )
        schedule, prediction, clip = read_schedule(scheduler)
        super().__init__(
            GaussianNetwork(prediction, schedule),
            schedule,
            shape=(1, 4, 4),
            prediction_type=prediction,
            clip=clip,
            scheduler=scheduler,
        )

    @property
    def calls(self) -> list[float]:
        found: list[float] = self.network.calls
        return found

    def solution(self, noise: Tensor, t: float | None = None) -> Tensor:
        """Where the probability flow takes x_t, by default from the first time."""
        alpha, sigma = self.schedule.level(float(self.schedule.levels(1).t[0]) if t is None else t)
        return MEAN + STD * (noise - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5


def noise(n: int = 64) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
