"""The text-to-image teacher that ships: whole, small, and sampled as the stock pipeline does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from models.common.random import generator_for
from models.teachers.conditioning import ConditionTable
from models.teachers.loading import load_denoiser

FOLDER = Path(__file__).parents[3] / "data/pretrained/emoji64"
PROMPTS = ["red apple, noto style", "cat face, twemoji style"]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    made = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def test_it_is_small() -> None:
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert size < 16e6


def test_shipped_folders_do_not_say_where_they_were_made() -> None:
    for file in FOLDER.parent.rglob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        assert not (isinstance(content, dict) and content.get("_name_or_path")), file


def test_its_chain_is_that_of_the_stock_pipeline(pipeline: StableDiffusionPipeline) -> None:
    teacher, steps, guidance = load_denoiser(str(FOLDER)), 4, 3.0
    family = type(teacher)
    teacher.set_conditions(
        ConditionTable(family.encode_prompts(pipeline, PROMPTS), family.encode_null(pipeline))
    )
    condition = teacher.encode_condition(torch.arange(2))
    noise = torch.randn(2, 4, 16, 16, generator=generator_for("cpu", 0))
    x, levels = noise, teacher.schedule.levels(steps)
    with torch.inference_mode():
        for k in range(steps):
            x0 = teacher.denoise(x, levels.t[k], condition, guidance)
            eps = (x - levels.alpha[k] * x0) / levels.sigma[k]
            x = (levels.alpha[k + 1] * x0 + levels.sigma[k + 1] * eps).float()
    stock = pipeline(
        PROMPTS, num_inference_steps=steps, guidance_scale=guidance, latents=noise,
        output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(x, stock, atol=1e-4)


def test_what_it_draws_depends_on_the_prompt(pipeline: StableDiffusionPipeline) -> None:
    """From the same noise, a red heart is redder and a blue heart bluer."""
    noise = torch.randn(1, 4, 16, 16, generator=generator_for("cpu", 1)).expand(2, -1, -1, -1)
    images = pipeline(
        ["red heart, noto style", "blue heart, noto style"], num_inference_steps=8,
        guidance_scale=4.0, latents=noise.clone(), output_type="pt",
    ).images  # fmt: skip
    red, blue = images.mean((2, 3))
    assert red[0] > red[2] + 0.1
    assert blue[2] > blue[0] + 0.1
