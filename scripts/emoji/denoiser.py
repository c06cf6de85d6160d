"""Text encoder and denoiser, trained together on latents by the v-prediction loss.

Loss: mean |v' - v|^2 at uniform times of the cosine schedule (Nichol and Dhariwal 2021), where
v = alpha eps - sigma x0 (Salimans and Ho 2022). A tenth of the prompts is replaced by the empty
one, which serves classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from models.common.random import generator_for
from models.common.shapes import append_dims
from models.methods.base import Losses, Trainable
from models.teachers.base import training_target
from scripts.emoji.data import to_float
from scripts.emoji.text import tokens

DROPOUT = 0.1
SIZES = (16, 12, 8)
"""Of latents: the images' own, and smaller ones for methods that begin small."""
TURNS = (0, 1, 0, 2, 0)
"""Which of the sizes a batch has."""


class Pairs(NamedTuple):
    """`x0` latents (n, 4, S, S), `prompts` token numbers (n, L)."""

    x0: Tensor
    prompts: Tensor


def build_unet(
    widths: tuple[int, int, int] = (32, 64, 128), text_width: int = 128
) -> UNet2DConditionModel:
    """A UNet of 16x16 latents that reads the text at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads it as the number of heads here
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """The cosine schedule, v prediction, sampled from pure noise."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )


class TextToImage(Trainable):
    """One role, `teacher`: a ModuleDict of `unet` and `text`; a batch is :class:`Pairs`.

    `empty`: token numbers (L,) of the empty prompt.
    """

    ema = ("teacher",)

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, empty: Tensor):
        self.unet, self.text, self.empty = unet.train(), text.train(), empty
        self.networks = {"teacher": nn.ModuleDict({"unet": unet, "text": text})}
        self.alphas_cumprod = build_scheduler().alphas_cumprod.double()

    def loss(self, role: str, batch: Pairs, generator: torch.Generator) -> Losses:
        """The loss at the head of this module."""
        n = len(batch.x0)
        t = torch.randint(len(self.alphas_cumprod), (n,), generator=generator)
        eps = torch.randn(batch.x0.shape, generator=generator)
        dropped = torch.rand(n, 1, generator=generator) < DROPOUT
        squared = self.alphas_cumprod[t]
        alpha, sigma = (append_dims(v.sqrt().float(), batch.x0) for v in (squared, 1 - squared))
        text = self.text(torch.where(dropped, self.empty, batch.prompts)).last_hidden_state
        noisy = (alpha * batch.x0 + sigma * eps).to(memory_format=torch.channels_last)
        output = self.unet(noisy, t, encoder_hidden_states=text, return_dict=False)[0]
        target = training_target("v_prediction", batch.x0, eps, alpha, sigma)
        error = (output - target).square().mean()
        return error, {"mse": error}


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: Tensor, size: int = 16) -> Tensor:
    """Scaled latents (n, 4, size, size) of uint8 images (n, 3, S, S), reduced by area before."""
    made = []
    for part in images.split(32):
        x = to_float(part)
        if 4 * size != x.shape[-1]:
            x = F.interpolate(x, size=(4 * size, 4 * size), mode="area")
        made.append(vae.encode(x).latent_dist.mode())
    return (torch.cat(made) * vae.config.scaling_factor).clone()


def shuffled(x0: Sequence[Tensor], prompts: Tensor, step: int, size: int, seed: int) -> Pairs:
    """Batch `step`: every image comes once in an epoch, in an order of that epoch's own.

    `x0`: the images' latents at several sizes, which take turns in `TURNS`; with one size alone
    every batch has it.
    """
    count = len(prompts)
    size = min(size, count)
    epoch, place = divmod(step, count // size)
    order = torch.randperm(count, generator=generator_for("cpu", seed, 1, epoch))
    rows = order[place * size : (place + 1) * size]
    turn = TURNS[step % len(TURNS)]
    return Pairs(x0[min(turn, len(x0) - 1)][rows], prompts[rows])


def assemble(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The stock pipeline of these parts."""
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.inference_mode()
def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    guidance: float,
    steps: int = 25,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Images (n, 3, 64, 64) in [-1, 1]; the noise of a place in the list depends on `seed`."""
    if not prompts:
        return torch.zeros(0, 3, 64, 64)
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        result = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[generator_for("cpu", seed, start + i) for i in range(len(part))],
            output_type="pt",
        )
        made.append(result.images.float() * 2 - 1)
    return torch.cat(made)


def token_table(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token numbers (n, L) of the prompts and (L,) of the empty one."""
    return tokens(tokenizer, prompts), tokens(tokenizer, [""])[0]
