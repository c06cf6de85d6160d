"""Teachers known by their configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.common.errors import InputError
from tasks.config.presets import compose
from tasks.estimate.blueprint import Blueprint, blueprint
from tasks.estimate.parts import find_parts, is_large, known_architectures
from tests.models.teachers import pipelines
from tests.paths import PROJECT

# weights of the network and numbers in the condition of one prompt, as published
PUBLISHED = {
    "sd15": (859_520_964, 77 * 768),
    "sdxl": (2_567_463_684, 77 * 2048 + 1280),
    "sd35-medium": (2_243_171_520, 333 * 4096 + 2048),
    "sd35-large": (8_056_627_520, 333 * 4096 + 2048),
    "flux-dev": (11_901_408_320, 512 * 4096 + 768),
}


def plan_of(preset: str, *overrides: str) -> Blueprint:
    return blueprint(compose(PROJECT, preset, overrides), PROJECT, None)


@pytest.mark.parametrize("preset", sorted(PUBLISHED))
def test_the_shapes_are_those_of_the_published_networks(preset: str) -> None:
    plan = plan_of(preset)
    weights, numbers = PUBLISHED[preset]
    assert plan.parameters == weights
    found = sum(torch.Size(shape).numel() for shape, _ in plan.condition.values())
    assert found == numbers
    assert all(p.is_meta for p in plan.teacher.network.parameters())
    assert plan.data_shape()[1:] == ((512, 512) if preset == "sd15" else (1024, 1024))
    assert is_large(compose(PROJECT, preset), PROJECT)


def test_every_description_has_a_preset_and_is_told() -> None:
    known = known_architectures(PROJECT)
    assert {file.stem for file in known.values()} == set(PUBLISHED)
    assert "conf/architecture/sdxl.yaml" in plan_of("sdxl").told


@pytest.mark.parametrize(
    "make",
    [
        pipelines.ddpm,
        pipelines.dit,
        pipelines.stable_diffusion,
        pipelines.stable_diffusion_xl,
        pipelines.stable_diffusion_3,
        pipelines.flux,
        pipelines.pixart,
        pipelines.sana,
    ],
)
def test_a_folder_without_weights_is_enough(make: Any, tmp_path: Path) -> None:
    pipe = make()
    pipe.save_pretrained(tmp_path / "teacher")
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    plan = plan_of("tiny", f"teacher.path={tmp_path / 'teacher'}")
    network = getattr(pipe, "unet", None) or pipe.transformer
    assert plan.parameters == sum(p.numel() for p in network.parameters())
    assert not is_large(compose(PROJECT, "tiny"), PROJECT)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "teacher.path = my-teacher: not here, and its shape is not known; expected a "),
        ({}, "teacher.path = my-teacher: no model_index.json in it; expected a diffusers pipeline"),
        (
            {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]},
            "teacher.path = my-teacher: unet/config.json is missing or not readable",
        ),
    ],
)
def test_what_is_not_known_is_one_line(files: Any, message: str, tmp_path: Path) -> None:
    if files is not None:
        (tmp_path / "my-teacher").mkdir()
    if files:
        (tmp_path / "my-teacher" / "model_index.json").write_text(json.dumps(files))
    with pytest.raises(InputError) as caught:
        find_parts("my-teacher", None, tmp_path)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
