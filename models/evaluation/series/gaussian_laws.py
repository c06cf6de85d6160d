"""Exact laws of Gaussian time series, and how far samples are from them.

AR(1):  x_{t+1} = phi x_t + s e_t;    OU:  dX = theta (mu - X) dt + s dW, at times 0, dt, 2 dt, ..
Each starts from its stationary law, or from a fixed value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from models.common.errors import InputError
from models.evaluation.base import Floats


@dataclass(frozen=True)
class GaussianLaw:
    """One channel at L times: mean (L,), covariance (L, L)."""

    mean: Floats
    covariance: Floats

    @property
    def std(self) -> Floats:
        return np.asarray(np.sqrt(np.diag(self.covariance)))


def ar1_law(length: int, phi: float, std: float = 1.0, start: float | None = None) -> GaussianLaw:
    """AR(1) with innovations of deviation `std`; `start` None: stationary, for |phi| < 1 only."""
    mean: Floats
    variance: Floats
    steps = np.arange(length)
    if start is None:
        if abs(phi) >= 1:
            raise InputError(f"phi = {phi}: expected |phi| < 1 for a stationary AR(1)")
        mean, variance = np.zeros(length), np.full(length, std**2 / (1 - phi**2))
    else:
        mean = np.asarray(start * float(phi) ** steps, dtype=np.float64)
        # sum_{j < t} phi^{2j}
        variance = np.append(0.0, np.cumsum(float(phi) ** (2.0 * steps[:-1]))) * std**2
    return GaussianLaw(mean, _markov_covariance(variance, phi))


def ou_law(
    length: int, theta: float, std: float, dt: float, mu: float = 0.0, start: float | None = None
) -> GaussianLaw:
    """Ornstein-Uhlenbeck: on a grid it is an AR(1) around mu, with phi = exp(-theta dt)."""
    if theta <= 0:
        raise InputError(f"theta = {theta}: expected a positive rate")
    phi = float(np.exp(-theta * dt))
    innovation = std * float(np.sqrt(-np.expm1(-2 * theta * dt) / (2 * theta)))
    law = ar1_law(length, phi, innovation, None if start is None else start - mu)
    return GaussianLaw(law.mean + mu, law.covariance)


def _markov_covariance(variance: Floats, phi: float) -> Floats:
    """cov(x_s, x_t) = phi^|t - s| var(x_min(s, t))."""
    steps = np.arange(len(variance))
    powers = float(phi) ** np.abs(steps[:, None] - steps[None])
    return np.asarray(powers * variance[np.minimum(steps[:, None], steps[None])])


@dataclass(frozen=True)
class LawErrors:
    """How far samples are from a Gaussian law.

    `mean` (L,): error of the mean in deviations of the law; `covariance`: Frobenius norm of the
    error over that of the covariance; `ks` (L,): Kolmogorov-Smirnov statistic of each time; the
    times at which the law is one value have 0 where all samples are that value, and 1 elsewhere.
    """

    mean: Floats
    covariance: float
    ks: Floats


def law_errors(series: Floats, law: GaussianLaw) -> LawErrors:
    """Errors of one channel's paths (n, L) in the law's units; InputError for another length."""
    if series.ndim != 2 or series.shape[1] != len(law.mean) or len(series) < 2:
        raise InputError(
            f"series of shape {series.shape}: expected (n, {len(law.mean)}) with n >= 2, as the law"
        )
    largest = float(law.std.max())
    gap = np.abs(series.mean(0) - law.mean) / np.where(law.std > 0, law.std, largest)
    error = np.linalg.norm(np.cov(series, rowvar=False) - law.covariance)
    return LawErrors(gap, float(error / np.linalg.norm(law.covariance)), ks_per_time(series, law))


def ks_per_time(series: Floats, law: GaussianLaw) -> Floats:
    """sup |F_n - F| (L,) of one channel's paths (n, L) at each time, by scipy."""
    return np.array(
        [
            stats.ks_1samp(column, stats.norm(mean, std).cdf).statistic
            if std > 0
            else float(not np.allclose(column, mean))
            for column, mean, std in zip(series.T, law.mean, law.std, strict=True)
        ]
    )


def ks_limit(n: int, level: float = 0.95) -> float:
    """The quantile of the KS statistic of n samples of the law itself."""
    return float(stats.kstwo.ppf(level, n))
