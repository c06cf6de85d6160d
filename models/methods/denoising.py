"""Training a teacher from data: the denoising loss (Ho et al. 2020; Salimans and Ho 2022 for v).

With several ``scales`` every batch is reduced by area to one of them in turn, so that the network
knows images of lower resolution too: scale-wise distillation renoises low-resolution samples and
asks the teacher about them.

Times are uniform on the schedule, or lognormal in sigma / alpha (Karras et al. 2022,
arXiv 2206.00364, with their mean and spread for the schedule's whole range), mixed with a quarter
of uniform ones, so that pure noise, where every sampler starts, is seen too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.common.shapes import append_dims
from models.methods.base import Losses, Trainable
from models.teachers.base import training_target
from models.teachers.conditioning import Condition
from models.teachers.loading import build_denoiser
from models.teachers.schedule import NoiseSchedule

Times = Literal["uniform", "lognormal"]
LOG_RATIO_MEAN, LOG_RATIO_STD, UNIFORM_SHARE = -0.7, 1.4, 0.25


class Images(NamedTuple):
    """``x0``: (n, C, S, S) in [-1, 1]; ``condition`` or None; ``step``: picks the batch's
    scale.
    """

    x0: Tensor
    condition: Condition | None
    step: int


class Denoising(Trainable):
    """The teacher's own training: one role, ``teacher``."""

    ema: tuple[str, ...] = ("teacher",)

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        scales: Sequence[int],
        label_dropout: float = 0.1,
        times: Times = "uniform",
    ):
        config: Any = network.config
        embeds = config.get("num_class_embeds")
        self.null_class = None if embeds is None else embeds - 1
        self.teacher = build_denoiser(network, scheduler, null_class=self.null_class)
        network.requires_grad_(True).train()
        self.networks: Mapping[str, nn.Module] = {"teacher": network}
        self.scales, self.label_dropout = tuple(scales), label_dropout
        self.density = None if times == "uniform" else lognormal_times(self.teacher.schedule)

    def loss(self, role: str, batch: Images, generator: torch.Generator) -> Losses:
        """Mean squared error in the network's own parametrization, at random times."""
        x0 = batch.x0
        scale = self.scales[batch.step % len(self.scales)]
        if scale != x0.shape[-1]:
            x0 = F.interpolate(x0, size=(scale, scale), mode="area")
        n = x0.shape[0]
        t = self._times(n, x0.device, generator)
        eps = torch.randn(x0.shape, device=x0.device, generator=generator)
        alpha, sigma = (append_dims(v, x0) for v in self.teacher.schedule.alpha_sigma(t))
        condition = batch.condition
        if condition is not None and self.null_class is not None:
            dropped = torch.rand(n, device=x0.device, generator=generator) < self.label_dropout
            labels = torch.where(dropped, self.null_class, condition["class_labels"])
            condition = Condition(class_labels=labels)
        target = training_target(self.teacher.prediction_type, x0, eps, alpha, sigma)
        output = self.teacher.output(alpha * x0 + sigma * eps, t, condition)
        error = (output - target).square().mean()
        return error, {f"mse_{scale}": error}

    def _times(self, n: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Times (n,) that the network knows."""
        place = torch.rand(n, device=device, generator=generator)
        if self.density is None:
            return self.teacher.schedule.snap(self.teacher.schedule.reach(place))
        cells = torch.multinomial(self.density.to(device), n, True, generator=generator)
        return self.teacher.schedule.snap(cells + place)  # anywhere in its cell

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Condition | None = None, **options: Any) -> Tensor:
        """Deterministic DDIM samples (n, C, H, W) from start noise, for a look during training."""
        steps = int(options.get("steps", 50))
        levels = self.teacher.schedule.levels(steps)
        x = noise
        for k in range(steps):
            x0 = self.teacher.denoise(x, levels.t[k], condition)
            eps = (x - levels.alpha[k] * x0) / levels.sigma[k]
            x = levels.alpha[k + 1] * x0 + levels.sigma[k + 1] * eps
        return x


def lognormal_times(schedule: NoiseSchedule) -> Tensor:
    """Probabilities (T,) of the schedule's T unit cells of time."""
    t = torch.arange(schedule.train_steps, dtype=torch.float64) + 0.5
    alpha, sigma = (v.double() for v in schedule.alpha_sigma(schedule.snap(t)))
    log_ratio = (sigma / alpha.clamp_min(1e-12)).log()
    # p(t) dt = p(log ratio) d(log ratio)
    weights = torch.exp(-0.5 * ((log_ratio - LOG_RATIO_MEAN) / LOG_RATIO_STD) ** 2)
    weights = weights * torch.gradient(log_ratio)[0].abs()
    weights = (1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE / len(t)
    return weights.float()
