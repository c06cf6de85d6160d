"""Networks and schedulers of newly trained teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet1DModel,
    UNet2DModel,
)

from models.common.errors import InputError


def build_network(
    shape: Sequence[int],
    channels: Sequence[int],
    layers: int,
    num_classes: int | None = None,
    dropout: float = 0.0,
) -> Any:
    """A network of states of ``shape``: (C, S, S) of images, (C, L) of series."""
    if len(shape) == 3:
        return build_unet(shape[-1], shape[0], channels, layers, num_classes, dropout)
    if num_classes is not None or dropout:
        raise InputError(
            f"teacher.conditional = {num_classes is not None}, teacher.dropout = {dropout}: "
            "networks of series have neither classes nor dropout; use false and 0"
        )
    return build_unet1d(shape[-1], shape[0], channels, layers)


def build_unet1d(
    length: int, in_channels: int, channels: Sequence[int], layers: int
) -> UNet1DModel:
    """A UNet1DModel of residual layers with time embeddings; as many blocks up as down, so that
    every level has its skip connection, the full length too.
    """
    check_levels(length, channels)
    if bad := [width for width in channels if width % 8]:
        raise InputError(
            f"teacher.channels {bad}: expected multiples of 8, its group norms' groups"
        )
    return UNet1DModel(
        sample_size=length,
        in_channels=in_channels,
        out_channels=in_channels,
        layers_per_block=layers,
        block_out_channels=tuple(channels),
        norm_num_groups=8,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1.0,
        act_fn="mish",
        down_block_types=("DownResnetBlock1D",) * len(channels),
        mid_block_type="MidResTemporalBlock1D",
        up_block_types=("UpResnetBlock1D",) * len(channels),
        out_block_type="OutConv1DBlock",
    )


def check_levels(size: int, channels: Sequence[int]) -> None:
    """InputError unless ``size`` can be halved between all levels."""
    stride = 2 ** (len(channels) - 1)
    if size % stride:
        raise InputError(
            f"teacher.channels has {len(channels)} levels: size {size} must be divisible by "
            f"{stride}"
        )


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
    check_levels(size, channels)
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
