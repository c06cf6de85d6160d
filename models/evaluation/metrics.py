"""Distances between a generated and a real set of images, in the feature space of one extractor.

KID: Binkowski et al. 2018, arXiv 1801.01401 (squared MMD, kernel (x.y/d + 1)^3, unbiased).
Frechet distance: Heusel et al. 2017, arXiv 1706.08500.
Precision and recall: Kynkaanniemi et al. 2019, arXiv 1904.06991.

Features are (n, d); everything is computed in float64. Intervals are percentile bootstrap
intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.common.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for features (n, d) and (m, d): (n, m) float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def kid(fake: Tensor, real: Tensor) -> float:
    """Unbiased squared MMD of features (n, d) and (m, d): 0 on average for equal laws, so maybe
    negative.
    """
    return Kid(real).add("fake", fake).value("fake")


class Kid:
    """KID of many generated sets against one real set (m, d), with intervals.

    Kernel matrices are computed once per set. A bootstrap resample is a vector of counts, and pairs
    of one sample with itself are left out, so that each resample is the same unbiased estimate,
    reweighted. The real set's resamples are shared by all generated sets: differences of two of
    them are paired. Generated sets share counts as well when they have equal sizes: sample i of
    each came from the same start noise.
    """

    def __init__(self, real: Tensor, resamples: int = 0, seed: int = 0) -> None:
        _check(real, real)
        self.real = real.double()
        self.seed = seed
        self.counts_real = _counts(len(real), resamples, seed)
        self.within_real = _within(polynomial_kernel(self.real, self.real), self.counts_real)
        self._draws: dict[str, Floats] = {}

    def add(self, name: str, fake: Tensor) -> Kid:
        """Compute the estimate and its resamples for features (n, d)."""
        _check(fake, self.real)
        counts = _counts(len(fake), len(self.counts_real) - 1, self.seed + 1)
        within = _within(polynomial_kernel(fake, fake), counts)
        cross = np.asarray(
            (counts @ polynomial_kernel(fake, self.real).numpy() * self.counts_real).sum(1)
        )
        cross = cross / (len(fake) * len(self.real))
        self._draws[name] = within + self.within_real - 2 * cross
        return self

    def value(self, name: str) -> float:
        return float(self._draws[name][0])

    def interval(self, name: str, level: float = 0.95) -> Interval:
        return _interval(self._draws[name], level)

    def difference(self, first: str, second: str, level: float = 0.95) -> Interval:
        """KID(first) - KID(second) on the same resamples; wholly below 0 means that `first` is
        better.
        """
        return _interval(self._draws[first] - self._draws[second], level)


def frechet_distance(fake: Tensor, real: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (n, d) and (m, d), covariances over n
    - 1.

    The trace of the root is taken through sqrt(C1) C2 sqrt(C1), which is symmetric, so that
    rank-deficient covariances (n <= d) give no complex or negative rests.
    """
    _check(fake, real)
    x, y = fake.double(), real.double()
    return gaussian_frechet(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))


def gaussian_frechet(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared 2-Wasserstein distance of two Gaussians with means (d,) and covariances (d,
    d).
    """
    values, vectors = torch.linalg.eigh(torch.atleast_2d(cov1))
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    product = root @ torch.atleast_2d(cov2) @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    total = (
        (mean1 - mean2).square().sum()
        + torch.atleast_2d(cov1).trace()
        + torch.atleast_2d(cov2).trace()
    )
    return float((total - 2 * trace).clamp_min(0))


def precision_recall(fake: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of fakes inside the real manifold, and of reals inside the fake one; each in [0, 1].

    A manifold is the union of balls around its samples that reach to the k-th nearest other sample.
    """
    _check(fake, real)
    if not 1 <= neighbours < min(len(fake), len(real)):
        raise InputError(
            f"neighbours = {neighbours}: expected 1 to {min(len(fake), len(real)) - 1}, below the "
            "samples"
        )
    x, y = fake.double(), real.double()
    across = _distances(x, y)
    precision = (across <= _radii(y, neighbours)[None, :]).any(1)
    recall = (across <= _radii(x, neighbours)[:, None]).any(0)
    return float(precision.double().mean()), float(recall.double().mean())


def path_rmse(
    states: Tensor, reference: Tensor, resamples: int = 0, seed: int = 0
) -> list[Interval]:
    """RMSE over paths and pixels after each coarse step 1..N, of states (n, N + 1, ...) of the same
    noise.

    The interval resamples whole paths.
    """
    if states.shape != reference.shape:
        raise InputError(
            f"paths of shape {tuple(states.shape)}: expected {tuple(reference.shape)} as in the "
            "cache"
        )
    errors = (states - reference).double().square().flatten(2).mean(2)[:, 1:].numpy()
    counts = _counts(len(errors), resamples, seed)
    draws = np.sqrt(counts @ errors / len(errors))
    return [_interval(column, 0.95) for column in draws.T]


def _counts(n: int, resamples: int, seed: int) -> Floats:
    """Bootstrap counts (1 + resamples, n); the first row is the sample itself."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn]).astype(np.float64)


def _within(kernel: Tensor, counts: Floats) -> Floats:
    """Weighted mean of the kernel over pairs of different samples, one per resample."""
    k = kernel.numpy().copy()
    np.fill_diagonal(k, 0)
    weight = counts.sum(1) ** 2 - (counts**2).sum(1)
    return np.asarray(((counts @ k) * counts).sum(1) / weight)


def _interval(draws: Floats, level: float) -> Interval:
    value = float(draws[0])
    if len(draws) < 3:
        return Interval(value, value, value)
    low, high = np.quantile(draws[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, neighbours: int) -> Tensor:
    # The nearest sample of all is the sample itself, at distance 0.
    return _distances(x, x).kthvalue(neighbours + 1, dim=1).values


def _check(fake: Tensor, real: Tensor) -> None:
    for features in (fake, real):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != real.shape[1]:
            raise InputError(
                f"features of shape {tuple(fake.shape)} against {tuple(real.shape)}: "
                "expected (n, d) and (m, d) with n, m >= 2"
            )
        if not bool(torch.isfinite(features).all()):
            raise InputError(
                "features hold NaN or infinite values: the samples or the extractor are broken"
            )
