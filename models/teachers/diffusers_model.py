"""What the families of diffusers' models have in common."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from models.teachers.base import Denoiser
from models.teachers.codec import Codec, VAECodec
from models.teachers.conditioning import Condition
from models.teachers.schedule import read_schedule


class DiffusersDenoiser(Denoiser):
    """A network with a ``config``; a family says how that means shape, classes and features."""

    value_range: tuple[float, float] | None = (-1.0, 1.0)

    @classmethod
    def from_diffusers(
        cls,
        network: nn.Module,
        scheduler: Any,
        vae: nn.Module | None = None,
        null_class: int | None = None,
    ) -> Self:
        """Wrap the parts of a diffusers pipeline; InputError for what is not supported."""
        config: Any = network.config
        schedule, prediction_type = read_schedule(scheduler)
        num_classes, null = cls.classes(config, null_class)
        clips = scheduler.config.get("clip_sample")
        return cls(
            network,
            schedule,
            shape=cls.state_shape(config),
            prediction_type=prediction_type,
            codec=Codec(cls.value_range) if vae is None else VAECodec(vae),
            clip=float(scheduler.config.get("clip_sample_range", 1.0)) if clips else None,
            num_classes=num_classes,
            null_class=null,
            scheduler=scheduler,
        )

    @staticmethod
    def state_shape(config: Any) -> tuple[int, ...]:
        """The shape of one state."""
        raise NotImplementedError

    @staticmethod
    def classes(config: Any, null_class: int | None) -> tuple[int | None, int | None]:
        """(number of real classes, null class) of a network, given the null class if one is
        known.
        """
        return None, None

    def call_network(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        keywords = {} if condition is None else dict(condition.items())
        output: Tensor = self.network(x, t, **keywords, return_dict=False)[0]
        return output
