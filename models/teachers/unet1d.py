"""UNets of series: ``UNet1DModel``, unconditional."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.teachers.diffusers_model import DiffusersDenoiser


class UNet1D(DiffusersDenoiser):
    """States (C, L) of any range; the middle block's features are (n, F, l)."""

    value_range = None

    @staticmethod
    def state_shape(config: Any) -> tuple[int, ...]:
        return int(config.in_channels), int(config.sample_size)

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    def middle_block(self) -> nn.Module:
        block: nn.Module = self.network.mid_block
        return block
