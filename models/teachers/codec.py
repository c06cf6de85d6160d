"""Between images and the states that a denoiser works on: a VAE, or nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Codec(nn.Module):
    """The identity: states are the data themselves.

    ``value_range``: what decoded values are clamped to, None for unbounded data such as series.
    ``vae``: the autoencoder of a latent codec, else None.
    """

    vae: Any

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


class VAECodec(Codec):
    """Latents of a diffusers autoencoder, centred and scaled: ``x0 = (z - shift) * scale``.

    ``scale`` is the VAE's ``scaling_factor`` and ``shift`` its ``shift_factor`` (SD3, FLUX).
    """

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    @property
    def scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """x0 of images in [-1, 1]: the mode of their encoding."""
        latents: Tensor = self.vae.encode(images).latent_dist.mode()
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        images: Tensor = self.vae.decode(x0 / self.scale + self.shift).sample
        return images.clamp(-1, 1)
