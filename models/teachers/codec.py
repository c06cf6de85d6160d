"""Between data and the states that a denoiser works on: a VAE, a scaling, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.common.shapes import rows_at_once
from models.teachers.network_call import pixels_per_entry


class Codec(nn.Module):
    """The identity: states are the data themselves.

    ``value_range``: what decoded values are clamped to, None for unbounded data such as series.
    ``vae``: the autoencoder of a latent codec, else None. ``scaling``: mean and std per channel of
    a :class:`ScaledCodec`, else None.
    """

    vae: Any
    scaling: dict[str, list[float]] | None = None
    data_std: float = 0.5
    """Of a state's entries, roughly."""

    def __init__(self, value_range: tuple[float, float] | None = (-1.0, 1.0)):
        super().__init__()
        self.value_range, self.vae = value_range, None

    @property
    def latent(self) -> bool:
        """Whether states are something else than the data."""
        return self.vae is not None

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """States x0 of data in ``value_range``."""
        return images

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Data of states, clamped to ``value_range``."""
        return x0 if self.value_range is None else x0.clamp(*self.value_range)


class ScaledCodec(Codec):
    """States x0 = (data - mean) / std, per channel: of unbounded data such as series, or of images.

    ``mean``, ``std``: (C,), of series fitted on training data. Decoded values are clamped to
    ``value_range``, None for series.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        value_range: tuple[float, float] | None = None,
    ):
        super().__init__(value_range)
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise InputError(
                f"scaling of mean {list(mean)} and std {list(std)}: expected one mean and one std "
                "above 0 per channel"
            )
        self.mean, self.std = [float(v) for v in mean], [float(v) for v in std]
        self.scaling = {"mean": self.mean, "std": self.std}
        self.data_std = 1.0 if value_range is None else Codec.data_std / max(self.std)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """States x0 of data (n, C, ...) in their own units."""
        return (images - _channels(self.mean, images)) / _channels(self.std, images)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Data (n, C, ...) in their own units."""
        return super().decode(x0 * _channels(self.std, x0) + _channels(self.mean, x0))


class VAECodec(Codec):
    """Latents of a diffusers autoencoder, centred and scaled.

        x0 = (z - mean) * scale / std

    ``scale`` is the autoencoder's ``scaling_factor``; ``mean`` its ``shift_factor`` (SD3, FLUX) or
    ``latents_mean`` per channel, ``std`` its ``latents_std`` per channel, 0 and 1 where it has
    none. Takes AutoencoderKL, VQModel (LDMPipeline's ``vqvae``; states are latents before
    quantisation) and others with the same ``encode`` and ``decode``. It is given as many images
    at once as have 2^20 pixels together.
    """

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae
        config: Any = vae.config
        _check_scaling(vae)
        self.scale = float(config.scaling_factor)
        shift, mean, std = (
            config.get(name) for name in ("shift_factor", "latents_mean", "latents_std")
        )
        if shift and mean is not None:
            raise InputError(
                f"teacher's {type(vae).__name__}: shift_factor = {shift} beside latents_mean; "
                "expected one of them"
            )
        self.mean = [float(shift or 0.0)] if mean is None else [float(v) for v in mean]
        self.std = [1.0] if std is None else [float(v) for v in std]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """x0 of images in [-1, 1]: the mode of their encoding."""
        size = rows_at_once(images.shape[2:], len(images))
        latents = torch.cat([self._latents(part) for part in images.split(size)])
        return (latents - _channels(self.mean, latents)) * self.scale / _channels(self.std, latents)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        latents = x0 * _channels(self.std, x0) / self.scale + _channels(self.mean, x0)
        sides = [side * pixels_per_entry(self.vae) for side in latents.shape[2:]]
        parts = latents.split(rows_at_once(sides, len(latents)))
        return torch.cat([self.vae.decode(part).sample.clamp(-1, 1) for part in parts])

    def _latents(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images)
        latents: Tensor
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.mode()
        else:
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return latents


def _check_scaling(vae: Any) -> None:
    """InputError unless an autoencoder's config scales latents as pipelines do."""
    config, kind = vae.config, type(vae).__name__
    scale, mean, std = (config.get(n) for n in ("scaling_factor", "latents_mean", "latents_std"))
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise InputError(f"teacher's {kind}: scaling_factor {scale}; expected a number above 0")
    if (mean is None) != (std is None):
        raise InputError(
            f"teacher's {kind}: latents_mean {mean}, latents_std {std}; expected both or neither"
        )
    channels = config.get("latent_channels")
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if values is not None and channels is not None and len(values) != channels:
            raise InputError(
                f"teacher's {kind}: {name} has {len(values)} entries, its latents {channels} "
                "channels; expected as many"
            )
    if std is not None and not all(value > 0 for value in std):
        raise InputError(f"teacher's {kind}: latents_std {list(std)}; expected numbers above 0")


def rescaled(vae: nn.Module, data_std: float) -> Any:
    """The same autoencoder with latents of a ``data_std``-th of their size, by its config alone;
    the one that is given stays as it is. InputError where that does not scale latents.
    """
    _check_scaling(vae)
    other: Any = copy.copy(vae)
    other.register_to_config(scaling_factor=float(other.config.scaling_factor) / data_std)
    return other


def _channels(values: list[float], like: Tensor) -> Tensor:
    """(1, C or 1, 1, ...), to broadcast against ``like`` (n, C, ...)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(
        1, -1, *[1] * (like.dim() - 2)
    )
