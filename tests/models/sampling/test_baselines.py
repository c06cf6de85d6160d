"""Training-free samplers on a teacher whose data is Gaussian, where every answer is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from models.common.errors import InputError
from models.sampling.baselines import (
    BASELINES,
    SPACINGS,
    sample_baseline,
    split_name,
    title,
    variants,
)

MEAN, STD = 0.3, 0.5


class GaussianTeacher:
    """Exact predictions for data N(MEAN, STD^2) per pixel; counts its calls."""

    def __init__(self, prediction: str = "epsilon") -> None:
        self.prediction = prediction
        self.calls: list[float] = []
        self.scheduler = (
            FlowMatchEulerDiscreteScheduler()
            if prediction == "flow"
            else DDPMScheduler(prediction_type=prediction, clip_sample=False)
        )

    def predict(
        self, x: Tensor, t: Tensor, condition: object = None, guidance: float = 1.0
    ) -> Tensor:
        self.calls.append(float(t))
        alpha, sigma = self.alpha_sigma(float(t))
        x0 = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        eps = (x - alpha * x0) / sigma
        return {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha * eps - sigma * x0,
            "flow": eps - x0,
        }[self.prediction]

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        if self.prediction == "flow":
            return 1 - t / 1000, t / 1000
        squared = float(self.scheduler.alphas_cumprod.double()[round(t)])
        return squared**0.5, (1 - squared) ** 0.5

    def solution(self, noise: Tensor, t: float = 999.0) -> Tensor:
        """Where the probability flow takes x_t."""
        alpha, sigma = self.alpha_sigma(t)
        return MEAN + STD * (noise - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5


def noise(n: int = 64) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_its_formula(prediction: str) -> None:
    teacher = GaussianTeacher(prediction)
    x = start = noise()
    found = sample_baseline(teacher, "ddim", 10, start)
    levels = [teacher.alpha_sigma(t) for t in range(999, 0, -100)] + [(1.0, 0.0)]
    for (alpha, sigma), (next_alpha, next_sigma) in pairwise(levels):
        x0 = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x = next_alpha * x0 + next_sigma * (x - alpha * x0) / sigma
    assert torch.allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("nfe", [7, 10])
def test_ddim_ends_on_clean_data_and_agrees_with_diffusers_where_it_does_too(nfe: int) -> None:
    teacher = GaussianTeacher()
    found = sample_baseline(teacher, "ddim", nfe, noise())
    first, second = teacher.calls[-2:]
    assert first == 2 * second + 1  # an even grid whose next point is -1: clean data
    if nfe == 10:
        scheduler = DDIMScheduler.from_config(teacher.scheduler.config, timestep_spacing="trailing")
        scheduler.set_timesteps(nfe)
        x = noise()
        for t in scheduler.timesteps:
            x = scheduler.step(teacher.predict(x, t), t, x).prev_sample
        assert torch.equal(found, x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_deterministic_samplers_reach_the_probability_flow(name: str, prediction: str) -> None:
    teacher = GaussianTeacher(prediction)
    for variant in variants(teacher, name):
        t = 1000.0 if prediction == "flow" else 999.0
        error = (
            (sample_baseline(teacher, variant, 200, noise()) - teacher.solution(noise(), t))
            .abs()
            .max()
        )
        assert error < (0.05 if name == "ddim" else 0.02), variant


def test_second_order_beats_first() -> None:
    teacher = GaussianTeacher()
    error = {
        name: float(
            (sample_baseline(teacher, name, 20, noise()) - teacher.solution(noise())).abs().mean()
        )
        for name in ("ddim", "dpmpp_2m", "unipc")
    }
    assert error["dpmpp_2m"] < error["ddim"] / 2
    assert error["unipc"] < error["ddim"] / 2


@pytest.mark.parametrize("name", ["ddpm", "sde_dpmpp_2m", "sde_dpmpp_2m_logsnr"])
def test_stochastic_samplers_have_the_law_of_the_data(name: str) -> None:
    teacher = GaussianTeacher()
    generator = torch.Generator().manual_seed(1)
    x = sample_baseline(teacher, name, 250, noise(1000), generator=generator)
    assert abs(float(x.mean()) - MEAN) < 4 * STD / x.numel() ** 0.5 + 0.005
    assert abs(float(x.std()) - STD) < 0.02
    same = sample_baseline(teacher, name, 5, noise(), generator=torch.Generator().manual_seed(3))
    again = sample_baseline(teacher, name, 5, noise(), generator=torch.Generator().manual_seed(3))
    other = sample_baseline(teacher, name, 5, noise(), generator=torch.Generator().manual_seed(4))
    assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10, 20])
def test_exactly_nfe_calls_from_pure_noise_downwards(prediction: str, nfe: int) -> None:
    for name in BASELINES:
        for variant in variants(GaussianTeacher(prediction), name):
            teacher = GaussianTeacher(prediction)
            x = sample_baseline(teacher, variant, nfe, noise(2))
            assert torch.isfinite(x).all(), variant
            assert len(teacher.calls) == nfe, variant
            assert (
                teacher.calls == sorted(teacher.calls, reverse=True) and teacher.calls[0] >= 990
            ), variant


def test_ddpm_last_step_is_noiseless_and_flow_has_no_ddpm() -> None:
    teacher = GaussianTeacher()
    one = [
        sample_baseline(teacher, "ddpm", 1, noise(), generator=torch.Generator().manual_seed(s))
        for s in (0, 1)
    ]
    assert torch.allclose(one[0], one[1], atol=1e-8)  # diffusers keeps a variance of 1e-20
    assert variants(GaussianTeacher("flow"), "ddpm") == []
    assert variants(GaussianTeacher("flow"), "unipc") == ["unipc"]
    assert variants(teacher, "unipc") == ["unipc", "unipc_logsnr", "unipc_karras"]


@pytest.mark.parametrize(
    ("name", "nfe", "words"),
    [
        ("heun", 5, "sampler heun: expected one of ddim, ddpm"),
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
