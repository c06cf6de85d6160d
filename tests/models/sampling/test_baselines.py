"""Training-free samplers: grids, numbers of calls, laws, and the teacher's own chain."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from models.common.errors import InputError
from models.sampling.baselines import (
    BASELINES,
    SOLVERS,
    SPACINGS,
    sample_baseline,
    sampling_levels,
    split_name,
    title,
    variants,
    why_not,
)
from models.teachers.loading import build_denoiser
from tests.models.sampling.gaussian import MEAN, STD, GaussianTeacher, noise
from tests.tiny import tiny_dit, tiny_unet

DETERMINISTIC = [name for name in BASELINES if name not in ("ddpm", "sde_dpmpp_2m", "sde_heun")]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_its_formula(prediction: str) -> None:
    teacher = GaussianTeacher(prediction)
    x = start = noise()
    found = sample_baseline(teacher, "ddim", 10, start)
    levels = [teacher.schedule.level(t) for t in range(999, 0, -100)] + [(1.0, 0.0)]
    for (alpha, sigma), (next_alpha, next_sigma) in pairwise(levels):
        x0 = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x = next_alpha * x0 + next_sigma * (x - alpha * x0) / sigma
    assert torch.allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_full_steps_are_the_teachers_own_sampler(name: str, clip: float | None) -> None:
    """diffusers' scheduler of the teacher itself, same noise, every step, clipping or not."""
    options: dict[str, Any] = {"num_train_timesteps": 40, "timestep_spacing": "trailing"}
    options |= {"clip_sample": clip is not None, "beta_end": 0.3}
    kind = DDIMScheduler if name == "ddim" else DDPMScheduler
    scheduler = kind(**options)
    teacher = build_denoiser(tiny_unet(), scheduler)
    x = start = noise(2).float()[..., :1, :].repeat(1, 1, 8, 2)
    scheduler.set_timesteps(40)
    theirs, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            # of a clipped x0 the noise has to be taken anew for the step to be consistent
            extra = {"use_clipped_model_output": True} if name == "ddim" else {"generator": theirs}
            x = scheduler.step(teacher.network(x, t).sample, t, x, **extra).prev_sample
    found = sample_baseline(teacher, name, 40, start, generator=ours)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


CLIPPING = DDPMScheduler(clip_sample=True, beta_end=0.05)
OTHERS = ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
          "PNDMScheduler", "HeunDiscreteScheduler"]  # fmt: skip


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_clip_exactly_as_the_teacher(name: str) -> None:
    """Whatever scheduler the teacher came with: the same network and schedule give the same
    numbers; a clipping teacher's baselines end within its bound.
    """
    x = noise(4).float()[..., :1, :].repeat(1, 1, 8, 2)
    found = []
    for scheduler in [DDPMScheduler(clip_sample=False), *(
        getattr(diffusers, other)(beta_start=1e-4, beta_end=0.02) for other in OTHERS
    )]:  # fmt: skip
        teacher = build_denoiser(tiny_unet(), scheduler)
        assert teacher.clip is None
        generator = torch.Generator().manual_seed(0)
        found.append(sample_baseline(teacher, name, 5, x, generator=generator))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-3)
    assert float(found[0].abs().max()) > 1.5
    teacher = build_denoiser(tiny_unet(), CLIPPING)
    clipped = sample_baseline(teacher, name, 5, x, generator=torch.Generator().manual_seed(0))
    levels = teacher.schedule.levels(5)
    if name not in ("ipndm", "ipndm2", "ipndm3"):  # those end by extrapolation
        assert float(clipped.abs().max()) <= 1.0 + 1e-5
    assert levels.t[0] == 999


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas",
                                    "use_beta_sigmas"])  # fmt: skip
def test_the_teachers_own_sampler_settings_do_not_leak(option: str) -> None:
    x = noise(2).float()[..., :1, :].repeat(1, 1, 8, 2)
    plain = build_denoiser(tiny_unet(), diffusers.DPMSolverMultistepScheduler())
    other = build_denoiser(tiny_unet(), diffusers.DPMSolverMultistepScheduler(**{option: True}))
    results = []
    for name in variants(other, "dpmpp_2m"):
        found = sample_baseline(other, name, 6, x)
        assert torch.equal(found, sample_baseline(plain, name, 6, x))
        results.append(found)
    assert len(results) == 3
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in pairwise(results))


@pytest.mark.parametrize("steps", [40, 60, 100, 7])
def test_grids_of_short_schedules_start_at_the_last_time(steps: int) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=100, clip_sample=False)
    teacher = GaussianTeacher(scheduler=scheduler)
    for name in ("ddim", "ddpm", "unipc"):
        teacher.calls.clear()
        sample_baseline(teacher, name, steps, noise(2))
        assert teacher.calls[0] == 99 and len(set(teacher.calls)) == steps


def test_learned_variance_has_all_baselines() -> None:
    teacher = build_denoiser(tiny_dit(), DDPMScheduler(clip_sample=False))
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = teacher.default_condition(2)
    for name in BASELINES:
        assert sample_baseline(teacher, name, 3, x, condition).shape == x.shape


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_reach_the_probability_flow(name: str, prediction: str) -> None:
    teacher = GaussianTeacher(prediction)
    for variant in variants(teacher, name):
        found = sample_baseline(teacher, variant, 101, noise(8))
        error = (found - teacher.solution(noise(8))).abs().max()
        assert error < (0.1 if name == "ddim" else 0.04), variant


def test_higher_order_beats_first() -> None:
    teacher = GaussianTeacher()
    error = {
        name: float((sample_baseline(teacher, name, 20, noise()) - teacher.solution(noise())).abs().mean())
        for name in DETERMINISTIC
    }  # fmt: skip
    others = [name for name in DETERMINISTIC if name not in ("ddim", "heun")]
    assert all(error[name] < error["ddim"] / 2 for name in others), error
    assert error["heun"] < error["ddim"]  # with half as many steps


@pytest.mark.parametrize("name", ["ddpm", "sde_dpmpp_2m", "sde_dpmpp_2m_logsnr", "sde_heun"])
def test_stochastic_samplers_have_the_law_of_the_data(name: str) -> None:
    teacher = GaussianTeacher()
    generator = torch.Generator().manual_seed(1)
    x = sample_baseline(teacher, name, 250, noise(1000), generator=generator)
    assert abs(float(x.mean()) - MEAN) < 4 * STD / x.numel() ** 0.5 + 0.005
    assert abs(float(x.std()) - STD) < 0.02
    same, again, other = (
        sample_baseline(teacher, name, 5, noise(), generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_the_noise_factor_widens() -> None:
    teacher = GaussianTeacher()
    spread = [
        float(
            sample_baseline(
                teacher, "sde_heun", 40, noise(500), factor=factor,
                generator=torch.Generator().manual_seed(0),
            ).std()
        )
        for factor in (0.9, 1.0, 1.1)
    ]  # fmt: skip
    assert spread[0] < spread[1] - 0.01 < spread[1] + 0.01 < spread[2]


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 10, 21])
def test_exactly_nfe_calls_from_pure_noise_downwards(prediction: str, nfe: int) -> None:
    for name in BASELINES:
        for variant in variants(GaussianTeacher(prediction), name):
            teacher = GaussianTeacher(prediction)
            x = sample_baseline(teacher, variant, nfe, noise(2))
            assert torch.isfinite(x).all(), variant
            assert len(teacher.calls) == nfe, variant
            first = 1000.0 if prediction == "flow" else 999.0
            assert teacher.calls == sorted(teacher.calls, reverse=True), variant
            assert teacher.calls[0] == first, variant


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "ddpm"])
def test_zero_terminal_snr_starts_at_pure_noise(name: str) -> None:
    scheduler = DDPMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False
    )
    for variant in variants(teacher := GaussianTeacher(scheduler=scheduler), name):
        teacher.calls.clear()
        found = sample_baseline(teacher, variant, 101, noise(8))
        assert teacher.calls[0] == 999 and len(teacher.calls) == 101
        if name in DETERMINISTIC:
            assert (found - teacher.solution(noise(8))).abs().max() < 0.1, variant


def test_given_grids() -> None:
    """iPNDM's grid of five ratios sigma / alpha; the levels are the nearest the teacher knows."""
    teacher = GaussianTeacher()
    ratios = [157.0, 6.0, 2.4, 1.2, 0.55]
    levels = sampling_levels(teacher.schedule, 5, ratios=ratios)
    np.testing.assert_allclose(levels.sigma[:-1] / levels.alpha[:-1], ratios, rtol=0.02)
    found = sample_baseline(teacher, "ipndm", 5, noise(), ratios=ratios)
    assert len(teacher.calls) == 5 and teacher.calls[0] == 999
    plain = sample_baseline(teacher, "ddim", 5, noise())
    errors = [(x - teacher.solution(noise())).abs().mean() for x in (found, plain)]
    assert errors[0] < 0.08 < errors[1]
    flow = GaussianTeacher("flow")
    given = sampling_levels(flow.schedule, 3, ratios=[np.inf, 1.0, 0.25])
    np.testing.assert_allclose(given.sigma, [1.0, 0.5, 0.2, 0.0])
    with pytest.raises(InputError, match="expected 3 falling numbers"):
        sampling_levels(teacher.schedule, 3, ratios=[5.0, 1.0])
    with pytest.raises(InputError, match="falling numbers"):
        sampling_levels(teacher.schedule, 2, ratios=[1.0, 5.0])


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
def test_spaced_grids_are_distinct_times_of_the_teacher(spacing: str) -> None:
    schedule = GaussianTeacher().schedule
    for steps in (1, 2, 10, 100, 1000):
        levels = sampling_levels(schedule, steps, spacing)
        assert levels.steps == steps and levels.t[0] == 999 and levels.t[-1] >= 0
        assert np.all(np.diff(levels.t) < 0) and (steps == 1 or levels.t[-1] == 0)
    levels = sampling_levels(schedule, 10, "logsnr")
    steps_of = np.diff(np.log(levels.alpha[:-1] / levels.sigma[:-1]))
    assert np.std(steps_of[:6]) < 0.05 * np.mean(steps_of)  # whole times are coarse near 0


def test_what_does_not_apply_says_why() -> None:
    flow, teacher = GaussianTeacher("flow"), GaussianTeacher()
    assert "not defined for flow matching" in str(why_not(flow, "ddpm"))
    assert "infinite ratio" in str(why_not(flow, "unipc_karras"))
    assert variants(flow, "ddpm") == [] and variants(flow, "unipc") == ["unipc"]
    assert variants(teacher, "unipc") == ["unipc", "unipc_logsnr", "unipc_karras"]
    assert why_not(teacher, "heun") is None


@pytest.mark.parametrize(
    ("name", "nfe", "words"),
    [
        ("dpm", 5, "sampler dpm: expected one of ddim, ddpm"),
        ("ddim_karras", 5, "only the multistep solvers have other spacings; use ddim"),
        ("unipc", 0, "nfe = 0: expected 1 to 1000"),
        ("unipc", 1001, "nfe = 1001: expected 1 to 1000"),
    ],
)
def test_bad_requests(name: str, nfe: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sample_baseline(GaussianTeacher(), name, nfe, noise(1))


def test_names() -> None:
    assert split_name("sde_dpmpp_2m_logsnr") == ("sde_dpmpp_2m", "logsnr")
    assert split_name("ddim") == ("ddim", SPACINGS[0])
    assert title("unipc_karras") == "UniPC karras"
    assert set(SOLVERS) == set(BASELINES)


def test_flow_matching_ddim_is_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    teacher = build_denoiser(tiny_unet(), scheduler)
    x: Tensor = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = sample_baseline(teacher, "ddim", 6, x)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6).tolist())
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(teacher.network(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
