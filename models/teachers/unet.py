"""What diffusers' UNets share, whatever the dimension of their states."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.common.errors import InputError
from models.teachers.diffusers_model import DiffusersDenoiser


class UNetDenoiser(DiffusersDenoiser):
    """A UNet halves its states between levels and has a middle block."""

    @staticmethod
    def check_middle(network: Any) -> None:
        """Raises InputError for a network without a middle block."""
        if network.mid_block is None:
            raise InputError(
                f"teacher's {type(network).__name__}: mid_block_type null; expected a middle "
                "block, whose features losses compare"
            )

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    def middle_block(self) -> nn.Module:
        block: nn.Module = self.network.mid_block
        return block
