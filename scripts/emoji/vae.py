"""The autoencoder: 64x64x3 to 4x16x16, trained on crops of emoji.

Loss: mean |x' - x| + EDGE mean |grad x' - grad x| + CHROMA mean |c(x') - c(x)|
+ KL * KL per latent entry (in nats), where c are the differences of neighbouring colour channels:
without them rare colours, greens and purples, are learnt last.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.common.random import generator_for
from models.methods.base import Losses, Trainable
from scripts.emoji.data import to_float

CROP, BATCH, RATE, WARMUP, EDGE, CHROMA, KL = 32, 8, 2e-3, 100, 0.5, 1.0, 1e-3


def build_vae(widths: tuple[int, int, int] = (16, 32, 64)) -> AutoencoderKL:
    """An autoencoder with reduction 4 and 4 latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class VaeTraining(Trainable):
    """One role, `vae`; a batch is images (n, 3, S, S) in [-1, 1]."""

    ema = ("vae",)

    def __init__(self, vae: AutoencoderKL):
        self.vae = vae.train()
        self.networks = {"vae": vae}

    def loss(self, role: str, batch: Tensor, generator: torch.Generator) -> Losses:
        """The loss at the head of this module."""
        latents = self.vae.encode(batch).latent_dist
        noise = torch.randn(latents.mean.shape, generator=generator)
        made = self.vae.decode(latents.mean + latents.std * noise).sample
        difference = made - batch
        error = difference.abs().mean()
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        chroma = difference.diff(dim=1).abs().mean()
        kl = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
        whole = error + EDGE * edges + CHROMA * chroma + KL * kl
        return whole, {"l1": error, "edges": edges, "chroma": chroma, "kl": kl}


def crops(images: Tensor, step: int, seed: int) -> Tensor:
    """BATCH random crops of uint8 images (n, 3, S, S), half of them flipped, in [-1, 1]."""
    generator = generator_for("cpu", seed, step)
    size = images.shape[-1]
    rows = torch.randint(len(images), (BATCH,), generator=generator)
    corners = torch.randint(size - CROP + 1, (BATCH, 2), generator=generator).tolist()
    parts = [
        images[i, :, y : y + CROP, x : x + CROP]
        for i, (y, x) in zip(rows.tolist(), corners, strict=True)
    ]
    batch = to_float(torch.stack(parts))
    flip = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, batch.flip(-1), batch)


@torch.inference_mode()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, of uint8 images (n, 3, S, S)."""
    values = []
    for batch in to_float(images).split(32):
        made = vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        error = ((made - batch) / 2).pow(2).flatten(1).mean(1)
        values.append(-10 * error.clamp(min=1e-10).log10())
    return float(torch.cat(values).mean())


@torch.inference_mode()
def fit_scaling(vae: AutoencoderKL, images: Tensor) -> None:
    """Set `scaling_factor` so that latents of uint8 images have standard deviation 1."""
    latents = torch.cat(
        [vae.encode(batch).latent_dist.mode() for batch in to_float(images).split(32)]
    )
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
