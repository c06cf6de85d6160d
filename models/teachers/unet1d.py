"""UNets of series: ``UNet1DModel``, unconditional."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.common.errors import InputError
from models.teachers.unet import UNetDenoiser

# Of the first residual layer, by its class: the convolutions that see the state, its shortcut last.
READERS = {
    "ResidualTemporalBlock1D": ("conv_in.conv1d", "residual_conv"),
    "ResConvBlock": ("conv_1", "conv_skip"),
}


class UNet1D(UNetDenoiser):
    """States (C, L) of any range; the middle block's features are (n, F, l)."""

    value_range = None
    data_channels = None
    input_layer = "down_blocks.0.resnets.0"

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

    def expand_input(self, network: Any, channels: int) -> None:
        """The first residual layer sees the state twice: in its convolution and in its shortcut."""
        first = network.get_submodule(self.input_layer)
        kind, before = type(first).__name__, network.config.in_channels
        if kind not in READERS:
            raise InputError(
                f"teacher's UNet1DModel: its first layer is a {kind}; expected "
                f"{' or '.join(READERS)}"
            )
        main, skip = READERS[kind]
        made = first.get_submodule(main).out_channels
        if channels < before:
            raise InputError(
                f"student input channels {channels}: expected at least the teacher's {before}"
            )
        if channels == before:
            return
        seen = first.get_submodule(main).in_channels  # with the time's channels, if they come here
        if made == seen + channels - before:
            raise InputError(
                f"teacher's UNet1DModel: its first block makes {made} channels, as many as a "
                "student takes; expected another number in block_out_channels (teacher.channels)"
            )
        shortcut = getattr(first, skip, None)
        if not isinstance(shortcut, nn.Conv1d):  # the identity, where channels do not change
            shortcut = _identity(seen, bias=kind == "ResidualTemporalBlock1D")
            shortcut.to(first.get_submodule(main).weight)
        setattr(first, skip, _widened(shortcut, before, channels))
        first.has_conv_skip = True  # ResConvBlock asks it
        parent, _, name = main.rpartition(".")
        wide = _widened(first.get_submodule(main), before, channels)
        setattr(first.get_submodule(parent), name, wide)
        network.register_to_config(in_channels=channels, out_channels=network.config.out_channels)


def _identity(channels: int, bias: bool) -> nn.Conv1d:
    layer = nn.Conv1d(channels, channels, 1, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels)[..., None])
        if bias:
            layer.bias.zero_()  # type: ignore[union-attr]
    return layer


def _widened(old: nn.Conv1d, before: int, channels: int) -> nn.Conv1d:
    """A layer like ``old`` with zero weights for inputs ``before`` to ``channels`` - 1; what comes
    after the state, the time, moves behind them.
    """
    added = channels - before
    new = nn.Conv1d(
        old.in_channels + added,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    ).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :before] = old.weight[:, :before]
        new.weight[:, channels:] = old.weight[:, before:]
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new
