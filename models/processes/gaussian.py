"""AR(1), Ornstein-Uhlenbeck and geometric Brownian motion, drawn from their exact laws.

Each is one recursion x_{k+1} = drift + decay * x_k + noise * z_k with z_k ~ N(0, 1): no
discretization error at any step size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ar1(count: int, length: int, phi: float, noise: float, rng: np.random.Generator) -> Floats:
    """(count, length): x_{k+1} = phi x_k + noise z_k, |phi| < 1, begun in its stationary law
    N(0, noise^2 / (1 - phi^2)).
    """
    start = noise / np.sqrt(1.0 - phi**2) * rng.standard_normal(count)
    return _recursion(start, length, phi, 0.0, noise, rng)


def ornstein_uhlenbeck(
    count: int,
    length: int,
    dt: float,
    rng: np.random.Generator,
    *,
    theta: float,
    mu: float,
    sigma: float,
    start: float | None = None,
) -> Floats:
    """(count, length): dX = theta (mu - X) dt + sigma dW, theta > 0, at times dt, 2 dt, .., from
    X_0 = ``start``, or from the stationary law N(mu, sigma^2 / (2 theta)) for None.
    """
    decay = float(np.exp(-theta * dt))
    stationary = sigma / np.sqrt(2.0 * theta)
    noise = stationary * float(np.sqrt(-np.expm1(-2.0 * theta * dt)))
    if start is None:
        first = mu + stationary * rng.standard_normal(count)
    else:
        first = mu + decay * (start - mu) + noise * rng.standard_normal(count)
    return _recursion(first, length, decay, mu * (1.0 - decay), noise, rng)


def geometric_brownian_motion(
    count: int,
    length: int,
    dt: float,
    rng: np.random.Generator,
    *,
    mu: float,
    sigma: float,
    start: float,
) -> Floats:
    """(count, length): dS = mu S dt + sigma S dW at times dt, 2 dt, .., from S_0 = ``start``."""
    z = rng.standard_normal((count, length))
    increments = (mu - 0.5 * sigma**2) * dt + sigma * np.sqrt(dt) * z
    prices: Floats = start * np.exp(np.cumsum(increments, axis=1))
    return prices


def _recursion(
    first: Floats, length: int, decay: float, drift: float, noise: float, rng: np.random.Generator
) -> Floats:
    """x_0 = ``first`` (count,), x_{k+1} = drift + decay x_k + noise z_k."""
    z = rng.standard_normal((len(first), length - 1))
    values = np.empty((len(first), length))
    values[:, 0] = first
    for k in range(length - 1):
        values[:, k + 1] = drift + decay * values[:, k] + noise * z[:, k]
    return values
