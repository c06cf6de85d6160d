"""Training a teacher from data: the denoising loss (Ho et al. 2020; Salimans and Ho 2022 for v).

With several ``scales`` every batch is reduced by area to one of them in turn, so that the network knows
images of lower resolution too: scale-wise distillation renoises low-resolution samples and asks the teacher
about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor, nn

from models.errors import InputError
from models.method import Losses
from models.teacher import Teacher, training_target


class Images(NamedTuple):
    """``x0``: (n, C, S, S) in [-1, 1]; ``labels``: (n,) int64 or None; ``step``: picks the batch's scale."""

    x0: Tensor
    labels: Tensor | None
    step: int


def build_unet(
    size: int,
    in_channels: int,
    channels: Sequence[int],
    layers: int,
    num_classes: int | None = None,
    dropout: float = 0.0,
) -> UNet2DModel:
    """A UNet2DModel with attention at the lowest resolution only; ``num_classes`` adds a null class for
    guidance.
    """
    stride = 2 ** (len(channels) - 1)
    if size % stride:
        raise InputError(f"teacher.channels has {len(channels)} levels: size {size} must be divisible by {stride}")
    last = len(channels) - 1
    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=in_channels,
        layers_per_block=layers,
        block_out_channels=tuple(channels),
        norm_num_groups=8,
        attention_head_dim=16,
        dropout=dropout,
        down_block_types=tuple("AttnDownBlock2D" if i == last else "DownBlock2D" for i in range(last + 1)),
        up_block_types=tuple("AttnUpBlock2D" if i == 0 else "UpBlock2D" for i in range(last + 1)),
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )


def build_scheduler(prediction: str, schedule: str) -> Any:
    """The diffusers scheduler to save beside a newly trained network. ``schedule``: linear or cosine (VP
    only).
    """
    if prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    betas = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=betas,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
        variance_type="fixed_small",
    )


class Denoising:
    """The teacher's own training as a :class:`models.method.Method` with one player, ``teacher``."""

    averaged: tuple[str, ...] = ("teacher",)

    def __init__(self, network: nn.Module, scheduler: Any, scales: Sequence[int], label_dropout: float = 0.1):
        config: Any = network.config
        embeds = config.get("num_class_embeds")
        self.null_label = None if embeds is None else embeds - 1
        self.teacher = Teacher(network, scheduler, null_label=self.null_label)
        network.requires_grad_(True).train()
        self.players: Mapping[str, nn.Module] = {"teacher": network}
        self.scales, self.label_dropout = tuple(scales), label_dropout

    def active(self, step: int) -> Sequence[str]:
        return ("teacher",)

    def loss(self, player: str, batch: Images, generator: torch.Generator) -> Losses:
        """Mean squared error in the network's own parametrization, times uniform on the schedule."""
        x0 = batch.x0
        scale = self.scales[batch.step % len(self.scales)]
        if scale != x0.shape[-1]:
            x0 = F.interpolate(x0, size=(scale, scale), mode="area")
        n = x0.shape[0]
        uniform = torch.rand(n, device=x0.device, generator=generator) * self.teacher.train_steps
        t = uniform if self.teacher.prediction == "flow" else uniform.floor()
        eps = torch.randn(x0.shape, device=x0.device, generator=generator)
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.teacher.alpha_sigma(t))
        labels = batch.labels
        if labels is not None and self.null_label is not None:
            dropped = torch.rand(n, device=x0.device, generator=generator) < self.label_dropout
            labels = torch.where(dropped, self.null_label, labels)
        target = training_target(self.teacher.prediction, x0, eps, alpha, sigma)
        error = (
            (self.teacher._forward(alpha * x0 + sigma * eps, _times(self.teacher, t), labels) - target).square().mean()
        )
        return error, {f"mse_{scale}": error}

    @torch.no_grad()
    def sample(self, noise: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor:
        """Deterministic DDIM samples (n, C, H, W) from start noise, for a look during training."""
        steps = int(options.get("steps", 50))
        levels = self.teacher.levels(steps)
        x = noise
        for k in range(steps):
            x0 = self.teacher.denoise(x, levels.t[k], labels)
            eps = (x - levels.alpha[k] * x0) / levels.sigma[k]
            x = levels.alpha[k + 1] * x0 + levels.sigma[k + 1] * eps
        return x


def _times(teacher: Teacher, t: Tensor) -> Tensor:
    return t if teacher.prediction == "flow" else t.long()
