"""Networks and schedulers of newly trained teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from models.common.errors import InputError


def build_unet(
    size: int,
    in_channels: int,
    channels: Sequence[int],
    layers: int,
    num_classes: int | None = None,
    dropout: float = 0.0,
) -> UNet2DModel:
    """A UNet2DModel with attention at the lowest resolution only; ``num_classes`` adds a null class
    for guidance.
    """
    stride = 2 ** (len(channels) - 1)
    if size % stride:
        raise InputError(
            f"teacher.channels has {len(channels)} levels: size {size} must be divisible by "
            f"{stride}"
        )
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
        down_block_types=tuple(
            "AttnDownBlock2D" if i == last else "DownBlock2D" for i in range(last + 1)
        ),
        up_block_types=tuple("AttnUpBlock2D" if i == 0 else "UpBlock2D" for i in range(last + 1)),
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )


def build_scheduler(prediction_type: str, schedule: str) -> Any:
    """The diffusers scheduler to save beside a newly trained network. ``schedule``: linear or
    cosine (VP only).
    """
    if prediction_type == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    betas = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=betas,
        prediction_type=prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
        variance_type="fixed_small",
    )
