"""Pixel or latent UNets of images: ``UNet2DModel``, with or without classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from models.teachers.diffusers_model import DiffusersDenoiser


class UNet2D(DiffusersDenoiser):
    """States (C, H, W); the middle block's features are (n, F, h, w)."""

    @staticmethod
    def state_shape(config: Any) -> tuple[int, ...]:
        height, width = np.broadcast_to(config.sample_size, 2)
        return int(config.in_channels), int(height), int(width)

    @staticmethod
    def classes(config: Any, null_class: int | None) -> tuple[int | None, int | None]:
        embeds = config.get("num_class_embeds")
        real = embeds if null_class is None or embeds is None else embeds - 1
        return real, null_class

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    def middle_block(self) -> nn.Module:
        block: nn.Module = self.network.mid_block
        return block
