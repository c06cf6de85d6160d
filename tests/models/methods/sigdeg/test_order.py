"""The strong order of the shipped rule on the Gaussian mixture, plain and with calibrated gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from models.methods.sigdeg.build import SamplerGains
from models.methods.sigdeg.integrator import make_plan
from models.methods.sigdeg.pipeline import Step, rollout
from models.sampling.chain import Chain
from models.sampling.grids import coarse_grid
from models.sampling.signature import bases, feature_matrix
from models.teachers.gaussian_mixture import GaussianMixture, snr_levels

MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), torch.tensor([0.3, 0.3, 0.4]), 0.3
)
COUNTS = (16, 32, 64, 128)
PLAIN = SamplerGains(0.25)


@pytest.fixture(scope="module")
def fine() -> tuple[Chain, Tensor, Tensor, Tensor]:
    """(chain, start, noise, end) of 400 paths of 2,048 steps with the exact denoiser."""
    steps, paths = 2048, 400
    chain = Chain(snr_levels(0.05, 6.05, steps))
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(steps + 1, paths, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = chain.levels.alpha, chain.levels.sigma
    start = x = alpha[0] * MIXTURE.sample(paths, generator) + sigma[0] * noise[-1]
    for k in range(steps):
        D = MIXTURE.denoise(x, alpha[k], sigma[k])
        x = chain.a[k] * x + chain.b[k] * D + chain.s[k] * noise[k]
    return chain, start, noise[:-1], x


def errors(fine: tuple[Chain, Tensor, Tensor, Tensor], gains: SamplerGains) -> list[float]:
    """RMSE of the last state to the fine chain's on the same paths, by the number of steps."""
    chain, start, z, end = fine
    mean = (MIXTURE.weights @ MIXTURE.means).view(1, 2, 1, 1)

    def denoise(step: Step, X: Tensor, xi: Tensor, history: Sequence[Tensor]) -> Tensor:
        return MIXTURE.denoise(X[..., 0, 0], step.alpha, step.sigma)[..., None, None]

    found = []
    for count in COUNTS:
        parts = bases(chain, coarse_grid(chain, count), 2)
        xi = torch.einsum("ipk,knd->nipd", torch.as_tensor(feature_matrix(parts)), z)
        plan = make_plan(
            chain, parts, 2, gains.look_ahead, 2, gains.gain, gains.last_gain, gains.noise_gain
        )
        states = rollout(denoise, plan, start[..., None, None], xi[..., None, None], mean)
        found.append(float((states[:, -1, :, 0, 0] - end).square().sum(1).mean().sqrt()))
    return found


def order_of(found: Sequence[float]) -> float:
    return float(-np.polyfit(np.log(COUNTS), np.log(found), 1)[0])


def test_the_plain_rule_tends_to_the_teacher(fine: tuple[Chain, Tensor, Tensor, Tensor]) -> None:
    """Order one, and a smaller error than without look-ahead; the exact derivative has order 1.5
    (tests/models/teachers/test_gaussian_mixture.py).
    """
    found, plainest = errors(fine, PLAIN), errors(fine, SamplerGains(0.0))
    assert order_of(found) == pytest.approx(1.04, abs=0.12)
    assert all(one < other for one, other in zip(found, plainest, strict=True))


def test_a_gain_on_the_noise_keeps_the_sampler_away(
    fine: tuple[Chain, Tensor, Tensor, Tensor],
) -> None:
    """Gains on the extrapolation scale a term that shrinks with the step, so the order stays. A
    gain on the noise does not shrink: such gains hold for the numbers of steps that they were
    chosen for (models.methods.sigdeg.build.gains_for).
    """
    plain = errors(fine, PLAIN)
    extrapolating = errors(fine, SamplerGains(0.25, 1.4, 0.15, 1.0))
    assert order_of(extrapolating) == pytest.approx(1.03, abs=0.12)
    noisy = errors(fine, SamplerGains(0.25, 1.8, 0.15, 1.03))
    assert order_of(noisy) < 0.7 and noisy[-1] > 2 * plain[-1]
