"""What SwD is made of: the untrained student, the discriminator; equations:
models/methods/swd/method.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.common.errors import InputError
from models.methods.student_network import student_network
from models.methods.swd.config import SwDConfig
from models.methods.swd.pipeline import ScaleStep, SwDPipeline
from models.methods.swd.schedule import Schedule, level_of
from models.teachers.base import Denoiser, denoised_noise

MEAN_OF = 256


def make_scale_schedule(
    teacher: Denoiser, schedule: Schedule, limit: float | None = None
) -> list[ScaleStep]:
    """The sampler's steps; for epsilon networks those with sigma / alpha > ``limit`` are damped to
    the mean image.
    """
    steps: list[ScaleStep] = []
    for scale in schedule:
        t, alpha, sigma = level_of(teacher, scale.sigma)
        if steps and t >= steps[-1].t:
            raise InputError(
                f"method.schedule: sigma {scale.sigma} is the same level as the one before for "
                "this teacher"
            )
        step = ScaleStep(t, alpha, sigma, scale.size)
        if teacher.predicts_noise and limit is not None and sigma > limit * alpha:
            mean = _mean_image(teacher, step)
            step = ScaleStep(t, alpha, sigma, scale.size, limit * alpha / sigma, mean)
        steps.append(step)
    return steps


@torch.no_grad()
def _mean_image(teacher: Denoiser, step: ScaleStep) -> Any:
    shape = (MEAN_OF, teacher.shape[0], step.size, step.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return denoised_noise(teacher, noise, step.t).mean(0).mul(1e4).round().div(1e4).tolist()


def build_swd_pipeline(teacher: Denoiser, schedule: Schedule, config: SwDConfig) -> SwDPipeline:
    """The untrained student: a copy of the teacher's network in the scale-wise sampler."""
    network = student_network(teacher, teacher.shape[0], config.trainable, config.lora_rank)
    scale_schedule = make_scale_schedule(teacher, schedule, config.conditioning_limit)
    return SwDPipeline(
        unet=network,
        scale_schedule=[asdict(step) for step in scale_schedule],
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        clip=teacher.clip,
        num_classes=teacher.num_classes,
        scaling=teacher.codec.scaling,
        vae=teacher.codec.vae,
        renoise=config.renoise,
    )


def shrink(teacher: Denoiser, x0: Tensor, size: int) -> Tensor:
    """x0 (n, C, S, S) at ``size`` by area, in pixel space: latents are decoded, reduced and encoded
    again.
    """
    if x0.shape[-1] == size:
        return x0
    if not teacher.codec.latent:
        return F.interpolate(x0, size=(size, size), mode="area")
    images = teacher.decode(x0)
    side = size * (images.shape[-1] // x0.shape[-1])
    return teacher.encode(F.interpolate(images, size=(side, side), mode="area"))


class Critic(nn.Module):
    """D of (15): logits (n,) of spatially averaged features (n, F), so the same at every
    resolution.
    """

    def __init__(self, width: int, kind: Literal["shallow", "deep"] = "shallow"):
        super().__init__()
        if kind == "shallow":
            self.net = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
                nn.LayerNorm(width),
                nn.Linear(width, 1),
            )
        else:  # four layers whose widths fall evenly to 1
            widths = torch.linspace(width, 1, 5).int().tolist()
            layers = [
                nn.Sequential(nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b))
                for a, b in itertools.pairwise(widths)
            ]
            self.net = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.net(features).squeeze(1)
        return logits


def pool(features: Tensor) -> Tensor:
    """(n, F, h, w) or (n, tokens, F) -> (n, F), float32."""
    return (features.mean((2, 3)) if features.dim() == 4 else features.mean(1)).float()


@contextmanager
def frozen(network: nn.Module | None) -> Iterator[None]:
    """No gradients for the network's weights inside; gradients still pass through it to its input.

    Gradient checkpointing rests meanwhile: what is computed again in the backward pass would no
    longer be frozen.
    """
    trained = [] if network is None else [p for p in network.parameters() if p.requires_grad]
    saving: Any = network if getattr(network, "is_gradient_checkpointing", False) else None
    if saving is not None:
        saving.disable_gradient_checkpointing()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        if saving is not None:
            saving.enable_gradient_checkpointing()
