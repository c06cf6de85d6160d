"""The scheduler in diffusers' own pipelines, with tiny random weights."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from models.schedulers.points import measure_points
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from tests.models.teachers import pipelines

QUICK = ("ddpm", "dit", "sd", "sd3", "flux")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in pipelines.PIPELINES]
PLAIN = {"eta": 0.0, "solver_order": 1, "look_ahead": 0.0}


@functools.cache
def opened(name: str) -> tuple[Any, dict[str, Any], Any]:
    pipe, call = pipelines.build(name)
    return pipe, call, pipe.scheduler.config


def images(name: str, scheduler: Any, seed: int = 0, steps: int = 3, **call: Any) -> np.ndarray:
    pipe, defaults, _ = opened(name)
    pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(seed)
    call = {"generator": generator, "num_inference_steps": steps} | defaults | call
    return np.asarray(pipe(**call).images)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_the_generator_decides(name: str) -> None:
    """Also where the pipeline hands the generator to nothing but the start (DiT, SD3, FLUX)."""
    scheduler = SigDEGScheduler.from_config(opened(name)[2])
    first = images(name, scheduler)
    torch.rand(5)  # the global generator plays no part
    again, other = images(name, scheduler), images(name, scheduler, seed=1)
    assert len(first) == 4 and np.isfinite(first).all()
    np.testing.assert_array_equal(again, first)  # twice in a row with one scheduler
    assert np.abs(other - first).mean() > 1e-3
    pairs = [np.abs(first[i] - first[j]).mean() for i in range(4) for j in range(i)]
    assert min(pairs) > 1e-3  # no two images of a batch or a prompt are alike


@pytest.mark.parametrize("name", ["sd", "flux", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_noise_and_guidance_matter(name: str) -> None:
    config = opened(name)[2]
    base = images(name, SigDEGScheduler.from_config(config))
    still = images(name, SigDEGScheduler.from_config(config, eta=0.0))
    assert np.abs(still - base).mean() > 1e-3
    guided = images(name, SigDEGScheduler.from_config(config), guidance_scale=9.0)
    assert np.abs(guided - base).mean() > 1e-5


@pytest.mark.parametrize("name", ["ddpm", pytest.param("sd", marks=pytest.mark.slow)])
def test_all_fine_steps_are_ddpm(name: str) -> None:
    config = opened(name)[2]
    clip = {"clip_sample": name == "ddpm"}  # which DDPMScheduler would do to any model
    trailing = {"timestep_spacing": "trailing", "variance_type": "fixed_small"}
    expected = images(name, DDPMScheduler.from_config(config, **trailing, **clip), steps=5)
    found = images(name, SigDEGScheduler.from_config(config, chain_steps=5), steps=5)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(
    "name", ["sd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dit", "sd2", "sdxl"))]
)
def test_first_order_without_noise_is_ddim(name: str) -> None:
    config = opened(name)[2]
    trailing = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    expected = images(name, DDIMScheduler.from_config(config, **trailing), steps=4)
    plain = PLAIN | {"coarse_grid": "index", "clip_sample": False}
    found = images(name, SigDEGScheduler.from_config(config, **plain), steps=4)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_first_order_without_noise_is_flow_matching_euler(name: str) -> None:
    config = opened(name)[2]
    sigmas = {"sigmas": [1.0, 0.6, 0.2]} if name == "sd3" else {}  # FLUX gives them by itself
    expected = images(name, FlowMatchEulerDiscreteScheduler.from_config(config), **sigmas)
    found = images(name, SigDEGScheduler.from_config(config, chain_steps=90, **PLAIN), **sigmas)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_flux_hands_over_sigmas_if_asked_to() -> None:
    config, sigmas = opened("flux")[2], [1.0, 0.9, 0.2]
    expected = images("flux", FlowMatchEulerDiscreteScheduler.from_config(config), sigmas=sigmas)
    ours = SigDEGScheduler.from_config(config, use_flow_sigmas=False, **PLAIN)
    np.testing.assert_allclose(images("flux", ours, sigmas=sigmas), expected, atol=2e-4)


@pytest.mark.slow
def test_all_fine_steps_without_noise_are_edm_euler() -> None:
    config = opened("edm")[2]
    expected = images("edm", EDMEulerScheduler.from_config(config), steps=4)
    ours = SigDEGScheduler.from_config(config, eta=0.0, chain_steps=4)
    np.testing.assert_allclose(images("edm", ours, steps=4), expected, atol=2e-3)


def test_a_generator_per_image_makes_images_independent_of_the_batch() -> None:
    pipe, _, config = opened("ddpm")
    pipe.scheduler = SigDEGScheduler.from_config(config)
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    together = pipe(batch_size=3, generator=seeds, num_inference_steps=3, output_type="np").images
    alone = torch.Generator().manual_seed(1)
    single = pipe(batch_size=1, generator=alone, num_inference_steps=3, output_type="np").images
    np.testing.assert_allclose(together[1], single[0], atol=1e-4)


@pytest.mark.slow
def test_one_step_of_pixart_reads_the_denoised_image() -> None:
    """PixArt takes step(..)[1] there (DMD); at one step it is the sample itself."""
    config = opened("pixart")[2]
    scheduler = SigDEGScheduler.from_config(config)
    seen = []
    step = scheduler.step

    @functools.wraps(step)
    def recorded(*args: Any, **options: Any) -> Any:
        seen.append(step(*args, **options))
        return seen[-1]

    scheduler.step = recorded
    images("pixart", scheduler, steps=1)
    torch.testing.assert_close(seen[0][0], seen[0][1])


@pytest.mark.parametrize("strength", [0.5, pytest.param(0.8, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "kind", "other"),
    [
        ("sd", StableDiffusionImg2ImgPipeline, DDIMScheduler),
        pytest.param(
            "sdxl", StableDiffusionXLImg2ImgPipeline, DDIMScheduler, marks=pytest.mark.slow
        ),
        pytest.param(
            "sd3",
            StableDiffusion3Img2ImgPipeline,
            FlowMatchEulerDiscreteScheduler,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_image_to_image_begins_in_the_middle(
    name: str, kind: Any, other: Any, strength: float
) -> None:
    pipe, call, config = opened(name)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    components = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    call = {"prompt": "a cat", "image": image, "strength": strength, "output_type": "np"}
    call |= {"num_inference_steps": 4, "guidance_scale": 3.0}
    made = []
    flow = {"sigmas": [1.0, 0.75, 0.5, 0.25]} if name == "sd3" else {}
    ddim = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    plain = PLAIN | {"coarse_grid": "index"}
    for scheduler in (
        other.from_config(config, **({} if flow else ddim)),
        SigDEGScheduler.from_config(config, **plain),
        SigDEGScheduler.from_config(config),
    ):
        changed = kind(**(components | {"scheduler": scheduler}), **(_without_checker(name)))
        changed.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(changed(generator=generator, **call, **flow).images)
    np.testing.assert_allclose(made[1], made[0], atol=2e-3)
    assert np.isfinite(made[2]).all() and np.abs(made[2] - made[1]).mean() > 1e-4


def _without_checker(name: str) -> dict[str, Any]:
    return {"requires_safety_checker": False} if name == "sd" else {}


def test_points_are_measured_on_the_pipeline() -> None:
    pipe, _, config = opened("ddpm")
    before = pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    call = {"batch_size": 8, "chain_steps": 20}
    points = measure_points(pipe, 4, generator=torch.Generator().manual_seed(0), **call)
    assert pipe.scheduler is before
    assert points[0] == 0 and points[-1] == 20 and points == sorted(set(points))
    scheduler = SigDEGScheduler.from_config(
        config, chain_steps=20, coarse_grid="given", points=points
    )
    assert np.isfinite(images("ddpm", scheduler, steps=2)).all()
