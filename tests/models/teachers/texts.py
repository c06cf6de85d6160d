"""Teachers of prompts around the tiny stock pipelines, with a table of two encoded prompts."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, FluxPipeline

from models.teachers.conditioning import ConditionTable
from models.teachers.loading import denoiser_of_pipeline
from models.teachers.network_call import packed, pixels_per_entry, unpacked
from tests.models.teachers.pipelines import build

PROMPTS = ["a cat", "two dogs"]
PIXELS = 32
"""Height and width of the images."""


def stepwise(pipe: Any) -> Any:
    """The pipeline with a scheduler whose own deterministic steps are those of the chain."""
    if "alphas_cumprod" in vars(pipe.scheduler):
        own = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 1}
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, **own)
    return pipe


def sampled(pipe: Any, teacher: Any, x: Any, steps: int, **call: Any) -> Any:
    """Latents (2, C, H, W) that the stock pipeline makes of start noise x, by the chain's steps and
    with its own defaults else; for :data:`PROMPTS`.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    plain = {name: False for name in ("use_resolution_binning", "clean_caption") if name in known}
    if "sigmas" in known and teacher.prediction_type == "flow":
        plain["sigmas"] = np.linspace(1, 1 / steps, steps)
    pixels = x.shape[-1] * pixels_per_entry(teacher.codec.vae)
    tokens = isinstance(pipe, FluxPipeline)
    made = pipe(
        PROMPTS, num_inference_steps=steps, height=pixels, width=pixels,
        latents=packed(x) if tokens else x, **{"output_type": "latent"} | plain | call,
    ).images  # fmt: skip
    latents = tokens and made.dim() == 3
    return unpacked(made, x.shape[-2] // 2, x.shape[-1] // 2) if latents else made


@cache
def table(name: str) -> ConditionTable:
    """The prompts as the pipeline of that name encodes them: the same weights every time."""
    pipe = build(name)[0]
    family: Any = type(denoiser_of_pipeline(pipe, name, size=PIXELS))
    return ConditionTable(family.encode_prompts(pipe, PROMPTS), family.encode_null(pipe))


def prompt_teacher(name: str, size: int | None = PIXELS) -> tuple[Any, Any]:
    """(pipeline, teacher of its parts); the teacher's labels 0 and 1 are :data:`PROMPTS`."""
    pipe = stepwise(build(name)[0])
    teacher: Any = denoiser_of_pipeline(pipe, name, size=size)
    teacher.set_conditions(table(name))
    return pipe, teacher
