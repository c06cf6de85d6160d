"""The solvers against diffusers' own implementations, on the same grid and the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from models.sampling import solvers
from models.sampling.baselines import sampling_levels
from models.teachers.schedule import Levels
from tests.models.sampling.gaussian import GaussianTeacher

SCHEDULE = GaussianTeacher().schedule
DPM = {"algorithm_type": "dpmsolver++", "lower_order_final": True, "final_sigmas_type": "zero"}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dpmpp_2m": (DPMSolverMultistepScheduler, lambda *a: solvers.dpmpp(*a, order=2), DPM),
    "dpmpp_3m": (
        DPMSolverMultistepScheduler,
        lambda *a: solvers.dpmpp(*a, order=3),
        DPM | {"solver_order": 3},
    ),
    "sde_dpmpp_2m": (
        DPMSolverMultistepScheduler,
        lambda *a: solvers.dpmpp(*a, order=2, stochastic=True),
        DPM | {"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": (UniPCMultistepScheduler, solvers.unipc, {"lower_order_final": True}),
    "deis": (DEISMultistepScheduler, lambda *a: solvers.deis(*a, order=3), {"solver_order": 3}),
    "deis2": (DEISMultistepScheduler, lambda *a: solvers.deis(*a, order=2), {}),
}


def denoised(x: Tensor, k: int) -> Tensor:
    """Any smooth function of state and time."""
    return torch.sin(2 * x + 0.3 * k) * 0.7


def start() -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("spacing", ["trailing", "logsnr", "karras"])
@pytest.mark.parametrize("steps", [2, 3, 6, 10])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_diffusers(name: str, steps: int, spacing: str) -> None:
    kind, ours, options = CASES[name]
    levels = sampling_levels(SCHEDULE, steps, spacing)
    scheduler = kind(prediction_type="sample", **options)
    scheduler.set_timesteps(steps)
    ratios = levels.sigma / levels.alpha
    if kind is DEISMultistepScheduler:
        ratios[-1] = 1e-9  # it has no formula for clean data itself
    scheduler.sigmas = torch.tensor(ratios, dtype=torch.float64)
    scheduler.timesteps = torch.tensor(levels.t, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    noises = [torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(steps)]
    extra = {"variance_noise"} if name.startswith("sde") else set()
    scheduler.set_begin_index(0)
    x = start()
    for k, t in enumerate(scheduler.timesteps):
        step = dict.fromkeys(extra, noises[k])
        x = scheduler.step(denoised(x, k), t, x, **step).prev_sample.double()
    given = iter(noises)
    found = ours(denoised, levels, start(), lambda: next(given))
    torch.testing.assert_close(found, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_ipndm_agrees_with_diffusers(steps: int) -> None:
    """Its scheduler keeps alpha and sigma of its own; those of the levels are put in their place."""
    levels = sampling_levels(SCHEDULE, steps, "logsnr")
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.alphas = torch.tensor(levels.alpha)
    scheduler.betas = torch.tensor(levels.sigma)
    scheduler.timesteps = torch.tensor(levels.t)
    x = start()
    for k, t in enumerate(scheduler.timesteps):
        alpha, sigma = levels.alpha[k], levels.sigma[k]
        eps = (x - alpha * denoised(x, k)) / sigma
        v = (eps - sigma * x) / alpha  # what it turns back into the noise
        x = scheduler.step(v, t, x).prev_sample
    found = solvers.ipndm(denoised, levels, start(), torch.Tensor, order=4)
    torch.testing.assert_close(found, x)


def levels_of(steps: int) -> Levels:
    """Evenly spaced log-SNR, not to clean data, so that orders can be measured."""
    lam = np.linspace(-2.0, 2.0, steps + 1)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    return Levels(np.arange(steps, dtype=float), alpha, np.sqrt(1 - alpha**2))


@pytest.mark.parametrize(
    ("name", "solve", "order"),
    [
        ("ddim", lambda *a: solvers.ancestral(*a, eta=0.0), 1),
        ("dpmpp_2m", lambda *a: solvers.dpmpp(*a, order=2), 2),
        ("unipc", solvers.unipc, 2),
        ("heun", solvers.heun, 2),
        ("deis", lambda *a: solvers.deis(*a, order=3), 2),
    ],
)
def test_orders_on_the_probability_flow(name: str, solve: Any, order: int) -> None:
    """Halving the step divides the error by 2^order: N(0.3, 0.5^2), whose flow is known."""
    errors = []
    for steps in (20, 40, 80):
        levels = levels_of(steps)

        def denoise(x: Tensor, k: int, levels: Levels = levels) -> Tensor:
            alpha, sigma = float(levels.alpha[k]), float(levels.sigma[k])
            return 0.3 + alpha * 0.25 * (x - alpha * 0.3) / (alpha**2 * 0.25 + sigma**2)

        scale = np.sqrt(levels.alpha**2 * 0.25 + levels.sigma**2)
        exact = levels.alpha[-1] * 0.3 + scale[-1] / scale[0] * (start() - levels.alpha[0] * 0.3)
        found = solve(denoise, levels, start(), torch.Tensor)
        errors.append(float((found - exact).abs().max()))
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert rates[-1] > order - 0.3, (name, errors, rates)
