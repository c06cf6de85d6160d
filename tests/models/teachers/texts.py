"""Teachers of prompts around the tiny stock pipelines, with a table of two encoded prompts."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler

from models.teachers.conditioning import ConditionTable
from models.teachers.loading import denoiser_of_pipeline
from tests.models.teachers.pipelines import build

PROMPTS = ["a cat", "two dogs"]
PIXELS = 16
"""Height and width of the images."""


def stepwise(pipe: Any) -> Any:
    """The pipeline with a scheduler whose own deterministic steps are those of the chain."""
    if "alphas_cumprod" in vars(pipe.scheduler):
        own = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 1}
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, **own)
    return pipe


def prompt_teacher(name: str, size: int | None = PIXELS) -> tuple[Any, Any]:
    """(pipeline, teacher of its parts); the teacher's labels 0 and 1 are :data:`PROMPTS`."""
    pipe = stepwise(build(name)[0])
    teacher: Any = denoiser_of_pipeline(pipe, name, size=size)
    teacher.set_conditions(
        ConditionTable(teacher.encode_prompts(pipe, PROMPTS), teacher.encode_null(pipe))
    )
    return pipe, teacher
