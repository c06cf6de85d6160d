"""UNets of series: ``UNet1DModel``, unconditional."""

from __future__ import annotations

from typing import Any

from models.common.errors import InputError
from models.teachers.unet import UNetDenoiser


class UNet1D(UNetDenoiser):
    """States (C, L) of any range; the middle block's features are (n, F, l)."""

    value_range = None
    data_channels = None

    @staticmethod
    def state_shape(config: Any) -> tuple[int, ...]:
        return int(config.in_channels), int(config.sample_size)

    @classmethod
    def check(cls, network: Any, scheduler: Any) -> None:
        super().check(network, scheduler)
        if network.config.get("extra_in_channels") and network.config.use_timestep_embedding:
            raise InputError(
                f"teacher's UNet1DModel: extra_in_channels {network.config.extra_in_channels} "
                "beside a time embedding; expected 0"
            )
        cls.check_middle(network)
