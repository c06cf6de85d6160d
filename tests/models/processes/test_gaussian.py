"""Laws of the simulated processes: moments in closed form, at any step size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.processes.gaussian import ar1, geometric_brownian_motion, ornstein_uhlenbeck

COUNT = 40000


def check_law(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Mean and covariance within 5 standard errors, and a normal law at every time."""
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((x.mean(0) - mean) / deviation).max() < 5 / np.sqrt(len(x))
    found = np.cov(x.T)
    spread = np.sqrt((covariance**2 + np.outer(deviation, deviation) ** 2) / len(x))
    assert np.abs((found - covariance) / spread).max() < 5
    for k in (0, x.shape[1] - 1):
        assert stats.kstest((x[:, k] - mean[k]) / deviation[k], "norm").pvalue > 1e-4


def test_ar1() -> None:
    x = ar1(COUNT, 6, 0.8, 0.5, np.random.default_rng(1))
    lags = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    check_law(x, np.zeros(6), 0.5**2 / (1 - 0.8**2) * 0.8**lags)


@pytest.mark.parametrize("start", [None, 2.0])
def test_ornstein_uhlenbeck(start: float | None) -> None:
    """The same law for one large step as for many: no discretization."""
    theta, mu, sigma, dt = 1.5, 0.7, 0.4, 0.6
    x = ornstein_uhlenbeck(
        COUNT, 4, dt, np.random.default_rng(2), theta=theta, mu=mu, sigma=sigma, start=start
    )
    t = dt * np.arange(1, 5)
    stationary = sigma**2 / (2 * theta)
    covariance = stationary * np.exp(-theta * np.abs(np.subtract.outer(t, t)))
    mean = np.full(4, mu)
    if start is not None:
        covariance -= stationary * np.exp(-theta * np.add.outer(t, t))
        mean = mu + (start - mu) * np.exp(-theta * t)
    check_law(x, mean, covariance)


def test_geometric_brownian_motion() -> None:
    mu, sigma, dt = 0.3, 0.5, 0.25
    prices = geometric_brownian_motion(
        COUNT, 5, dt, np.random.default_rng(3), mu=mu, sigma=sigma, start=2.0
    )
    t = dt * np.arange(1, 6)
    mean = np.log(2.0) + (mu - sigma**2 / 2) * t
    check_law(np.log(prices), mean, sigma**2 * np.minimum.outer(t, t))
    error = np.sqrt(np.exp(sigma**2 * t[-1]) - 1) / np.sqrt(COUNT)
    assert abs(prices[:, -1].mean() / (2 * np.exp(mu * t[-1])) - 1) < 5 * error
