"""What the families of diffusers' models have in common."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.teachers.base import Denoiser
from models.teachers.codec import Codec, ScaledCodec, VAECodec, rescaled
from models.teachers.conditioning import Condition
from models.teachers.network_call import call_for, pixels_per_entry
from models.teachers.reading import read_schedule
from models.teachers.schedule import NoiseSchedule, Preconditioned, VarianceExploding

LEARNED_VARIANCE = ("learned", "learned_range")


class DiffusersDenoiser(Denoiser):
    """A network with a ``config``; a family says how that means shape, classes and features."""

    value_range: tuple[float, float] | None = (-1.0, 1.0)
    data_channels: tuple[int, ...] | None = (1, 3)
    """Channels that data have; None: any number."""

    @classmethod
    def from_diffusers(
        cls,
        network: nn.Module,
        scheduler: Any,
        vae: nn.Module | None = None,
        null_class: int | None = None,
        size: int | None = None,
    ) -> Self:
        """Wrap the parts of a diffusers pipeline; InputError for what is not supported.

        ``size``: height and width of the images in pixels; None for the network's own.
        """
        config: Any = network.config
        cls.check(network, scheduler)
        shape = cls.sized(network, pixels_per_entry(vae), size)
        schedule, prediction_type, clip = read_schedule(scheduler, cls.tokens(config, shape))
        num_classes, null = cls.classes(config, null_class)
        return cls(
            network,
            schedule,
            shape=shape,
            prediction_type=prediction_type,
            codec=cls.codec_of(schedule, vae, shape[0], type(scheduler).__name__),
            clip=clip,
            num_classes=num_classes,
            null_class=null,
            scheduler=scheduler,
        )

    @classmethod
    def codec_of(cls, schedule: NoiseSchedule, vae: Any, channels: int, scheduler: str) -> Codec:
        """Between data and states: EDM's are data over sigma_data, those of a variance exploding
        process are images in [0, 1], as ScoreSdeVePipeline makes them. InputError where it is not
        known what a state stands for.
        """
        if isinstance(schedule, VarianceExploding):
            if vae is not None or cls.data_channels is None:
                raise InputError(
                    f"teacher {scheduler}: a network over {'series' if vae is None else 'latents'};"
                    " expected one over images in [0, 1], as ScoreSdeVePipeline has"
                )
            return ScaledCodec([-1.0] * channels, [2.0] * channels, cls.value_range)
        if not isinstance(schedule, Preconditioned):
            return Codec(cls.value_range) if vae is None else VAECodec(vae)
        if vae is not None:
            return VAECodec(rescaled(vae, schedule.data))
        if cls.data_channels is None:
            if schedule.data != 1.0:
                raise InputError(
                    f"teacher {scheduler}: sigma_data = {schedule.data:g} of a network over "
                    "series; expected 1, since series are scaled to that"
                )
            return Codec(cls.value_range)
        return ScaledCodec([0.0] * channels, [schedule.data] * channels, cls.value_range)

    @classmethod
    def sized(cls, network: Any, pixels: int, size: int | None) -> tuple[int, ...]:
        """The shape of one state, for images of ``size`` where that is given."""
        if size is not None:
            raise InputError(
                f"teacher.size = {size}: this teacher makes data of its own size; use null"
            )
        if network.config.get("sample_size") is None:
            raise InputError(
                f"teacher's {type(network).__name__}: sample_size null; expected the size it is "
                "to make; write it into its config.json"
            )
        shape = cls.state_shape(network.config)
        if min(shape) < 1:
            raise InputError(
                f"teacher's {type(network).__name__}: its config makes states of {shape}; expected "
                "channels and a sample_size of 1 or more"
            )
        return shape

    @staticmethod
    def state_shape(config: Any) -> tuple[int, ...]:
        """The shape of one state: (C, H, W), square where ``sample_size`` is one number."""
        height, width = np.broadcast_to(config.sample_size, 2)
        return int(config.in_channels), int(height), int(width)

    @staticmethod
    def tokens(config: Any, shape: tuple[int, ...]) -> int | None:
        """How many tokens a state is, for schedules that depend on it; None where that is not
        known.
        """
        return None

    @staticmethod
    def classes(config: Any, null_class: int | None) -> tuple[int | None, int | None]:
        """(number of real classes, null class) of a network, given the null class if one is
        known.
        """
        if null_class is not None:
            raise InputError(f"teacher.null_class = {null_class}: this teacher has no classes")
        return None, None

    @classmethod
    def check(cls, network: Any, scheduler: Any) -> None:
        """InputError for a network that this family cannot use: outputs unlike the states."""
        config, kind = network.config, type(network).__name__
        given, made = config.in_channels, config.get("out_channels") or config.in_channels
        variance = made == 2 * given and cls.splits_variance(scheduler)
        if made != given and not variance:
            raise InputError(
                f"teacher's {kind}: in_channels {given}, out_channels {made}; expected the same "
                "(inputs beside the state are not supported), or twice as many with a scheduler "
                "whose variance_type is learned or learned_range"
            )

    @staticmethod
    def splits_variance(scheduler: Any) -> bool:
        """Whether twice the channels mean that the network predicts a variance too."""
        return scheduler.config.get("variance_type") in LEARNED_VARIANCE

    @classmethod
    def check_channels(cls, channels: int, vae: Any) -> None:
        """InputError unless states of ``channels`` are data, or latents of ``vae``."""
        if vae is None and cls.data_channels is not None and channels not in cls.data_channels:
            raise InputError(
                f"teacher: {channels} channels and no autoencoder; images have 1 or 3; expected a "
                "pipeline with the vae that its latents belong to"
            )
        latent = None if vae is None else vae.config.get("latent_channels")
        if latent is not None and latent != channels:
            raise InputError(
                f"teacher: its network has {channels} channels, the latents of its "
                f"{type(vae).__name__} {latent}; expected the same"
            )

    def expand_input(self, network: Any, channels: int) -> None:
        """Give the input layer ``channels`` inputs, the new ones with zero weights; the network's
        config follows.
        """
        try:
            old = network.get_submodule(self.input_layer)
        except AttributeError:
            old = None
        config = network.config
        if not isinstance(old, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            raise InputError(
                f"teacher's {type(network).__name__}: its {self.input_layer} is "
                f"{type(old).__name__}; expected a convolution or a linear layer that sees the "
                f"state; name it in {type(self).__name__}.input_layer, or override expand_input"
            )
        if "in_channels" not in config or "out_channels" not in config:
            raise InputError(
                f"teacher's {type(network).__name__}: its config has {', '.join(config)}; expected "
                "in_channels and out_channels, since a student takes more channels than it makes"
            )
        before = old.weight.shape[1]
        if channels < before:
            raise InputError(
                f"student input channels {channels}: expected at least the teacher's {before}"
            )
        parent, _, name = self.input_layer.rpartition(".")
        setattr(network.get_submodule(parent), name, _widened(old, channels))
        made = config["out_channels"] or before
        network.register_to_config(in_channels=channels, out_channels=made)

    def call_network(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        pixels = pixels_per_entry(self.codec.vae)
        channels = self.shape[0]
        return call_for(self.prediction_type, self.network, x, t, channels, condition, pixels)


def _widened(old: Any, channels: int) -> nn.Module:
    """A layer like ``old`` whose further inputs have zero weights."""
    bias = old.bias is not None
    if getattr(old, "groups", 1) != 1:
        raise InputError(f"teacher's input layer has {old.groups} groups; expected 1")
    if isinstance(old, nn.Linear):
        new: Any = nn.Linear(channels, old.out_features, bias)
    else:
        new = type(old)(
            channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.dilation,
            old.groups,
            bias,
            old.padding_mode,
        )
    new.to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.weight.shape[1]] = old.weight
        if bias:
            new.bias.copy_(old.bias)
    widened: nn.Module = new
    return widened
