"""The Gaussian mixture's exact score, and the strong order of Sig-DEG's scheme on it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.sampling.chain import Chain, unroll
from models.sampling.grids import coarse_grid
from models.sampling.signature import basis
from models.teachers.gaussian_mixture import GaussianMixture, snr_levels

MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), torch.tensor([0.3, 0.3, 0.4]), 0.3
)
STATES = torch.tensor([[0.4, -0.2], [-1.0, 0.7], [2.0, 1.0]], dtype=torch.float64)
LEVELS = [(0.3, 0.95), (0.8, 0.6), (1.0, 0.5)]


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_denoiser_is_the_posterior_mean(alpha: float, sigma: float) -> None:
    """Against importance sampling of the definition, within five standard errors."""
    x0 = MIXTURE.sample(200_000, torch.Generator().manual_seed(0))
    for x, found in zip(STATES, MIXTURE.denoise(STATES, alpha, sigma), strict=True):
        weight = (-(x - alpha * x0).square().sum(1) / (2 * sigma**2)).exp()
        mean = weight @ x0 / weight.sum()
        error = ((weight[:, None] * (x0 - mean)).square().sum(0)).sqrt() / weight.sum()
        assert ((found - mean).abs() < 5 * error).all() and error.max() < 0.02


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_denoiser_obeys_tweedie(alpha: float, sigma: float) -> None:
    """D = (x + sigma^2 grad log p(x)) / alpha, with the marginal's log-density differentiated by
    torch.
    """
    x = STATES.clone().requires_grad_()
    total = alpha**2 * MIXTURE.tau**2 + sigma**2
    squares = (x[:, None] - alpha * MIXTURE.means).square().sum(-1)
    torch.logsumexp(MIXTURE.weights.log() - squares / (2 * total), 1).sum().backward()
    assert x.grad is not None
    expected = (STATES + sigma**2 * x.grad) / alpha
    torch.testing.assert_close(
        MIXTURE.denoise(STATES, alpha, sigma), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_jacobian_is_the_derivative(alpha: float, sigma: float) -> None:
    step = 1e-5
    found = MIXTURE.jacobian(STATES, alpha, sigma)
    for axis in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[axis] = step
        above, below = (MIXTURE.denoise(STATES + s * shift, alpha, sigma) for s in (1, -1))
        torch.testing.assert_close(
            found[:, :, axis], (above - below) / (2 * step), rtol=1e-7, atol=1e-8
        )


def test_samples_have_the_mixtures_moments() -> None:
    x = MIXTURE.sample(100_000, torch.Generator().manual_seed(1))
    mean = MIXTURE.weights @ MIXTURE.means
    centred = MIXTURE.means - mean
    covariance = centred.T @ (MIXTURE.weights[:, None] * centred) + 0.09 * torch.eye(
        2, dtype=torch.float64
    )
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.015)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.015)


def coarse_step(chain: Chain, lo: int, hi: int, Y: Tensor, z: Tensor, features: int) -> Tensor:
    """One step of (3) with the mixture's own denoiser; ``features`` columns of the depth-2 basis
    correct Dbar.
    """
    alpha, sigma = float(chain.levels.alpha[lo]), float(chain.levels.sigma[lo])
    part = unroll(chain, lo, hi)
    average = MIXTURE.denoise(Y, alpha, sigma)
    if features:
        Q = torch.as_tensor(basis(chain, lo, hi, 2).Q[:, :features])
        still_to_come = np.append(np.cumsum(part.omega[::-1])[::-1][1:], 0.0)
        integrand = torch.as_tensor(still_to_come * np.sqrt(np.diff(chain.snr[lo : hi + 1])))
        driver = torch.einsum(
            "p,pnd->nd", Q.T @ integrand, torch.einsum("kp,knd->pnd", Q, z[lo:hi])
        )
        slope = MIXTURE.jacobian(Y, alpha, sigma) * (sigma**2 / alpha)
        average = average + torch.einsum("nab,nb->na", slope, driver)
    return (
        part.A * Y + part.B * average + torch.einsum("k,knd->nd", torch.as_tensor(part.w), z[lo:hi])
    )


@pytest.fixture(scope="module")
def fine() -> tuple[Chain, Tensor, Tensor, Tensor]:
    """(chain, start, noise, end) of 600 paths of 2,048 steps with the exact score."""
    steps, paths = 2048, 600
    chain = Chain(snr_levels(0.05, 6.05, steps))
    generator = torch.Generator().manual_seed(1)
    x0 = MIXTURE.sample(paths, generator)
    noise = torch.randn(steps + 1, paths, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = chain.levels.alpha, chain.levels.sigma
    start = x = alpha[0] * x0 + sigma[0] * noise[-1]
    for k in range(steps):
        x = (
            chain.a[k] * x
            + chain.b[k] * MIXTURE.denoise(x, alpha[k], sigma[k])
            + chain.s[k] * noise[k]
        )
    return chain, start, noise[:-1], x


def strong_order(fine: tuple[Chain, Tensor, Tensor, Tensor], features: int) -> float:
    """Slope of log RMSE over log step, least squares over three halvings of the coarse step on the
    same paths.
    """
    chain, start, z, end = fine
    counts, errors = (16, 32, 64, 128), []
    for count in counts:
        grid = coarse_grid(chain, count)
        Y = start
        for lo, hi in itertools.pairwise(grid):
            Y = coarse_step(chain, int(lo), int(hi), Y, z, features)
        errors.append(float((Y - end).square().sum(1).mean().sqrt()))
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize(("features", "order"), [(0, 1.0), (1, 1.0), (2, 1.5), (3, 1.5)])
def test_strong_order(
    fine: tuple[Chain, Tensor, Tensor, Tensor], features: int, order: float
) -> None:
    """Order 1 from the noise alone, 1.5 with depth-2 features and the exact derivative.

    In the coordinate p = alpha x / sigma^2 and the clock Lambda = SNR the chain with eta = 1 is dp
    = D dLambda + dW, with D = E[x0 | p] the denoiser. D is a martingale (a posterior mean along its
    own filtration): dD = J dW with J = dD/dp, no drift. Over a step that ends at Lambda_e

        Dbar - D = J int (Lambda_e - Lambda) / dLambda dW + (terms of order h)

    The noise of (3) is exact, so leaving the integral out costs h^(3/2) per step, with mean zero:
    order 1. Up to higher order the integral lies in the span of int dW and int u dW, so of the
    noise and one more feature (with the noise alone it is made smaller, not removed); with it the
    next terms cost h^2 per step, mean zero again: order 1.5.
    """
    assert strong_order(fine, features) == pytest.approx(order, abs=0.12)


def test_levels_are_linear_in_snr() -> None:
    levels = snr_levels(0.1, 2.1, 4)
    np.testing.assert_allclose((levels.alpha / levels.sigma) ** 2, [0.1, 0.6, 1.1, 1.6, 2.1])
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0)
    assert levels.steps == 4 and math.isclose(levels.alpha[0], math.sqrt(0.1 / 1.1))
