"""Fréchet distance of two feature sets as Gaussians (Heusel et al. 2017, arXiv 1706.08500).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

Biased upwards by a term that shrinks with the number of samples: only sets of equal sizes are
comparable. In float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.evaluation.base import (
    Estimate,
    Metric,
    Samples,
    bootstrap_counts,
    checked_features,
)


def frechet_distance(fake: Tensor, real: Tensor) -> float:
    """The distance of features (n, d) and (m, d), with covariances over n - 1."""
    checked_features(fake, real)
    x, y = fake.double(), real.double()
    return gaussian_frechet(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))


def gaussian_frechet(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared 2-Wasserstein distance of two Gaussians: means (d,), covariances (d, d).

    The trace of the root is taken through sqrt(C1) C2 sqrt(C1), which is symmetric, so that
    rank-deficient covariances (n <= d) give no complex or negative rests.
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


class FrechetDistance(Metric):
    """Fréchet distance to all real samples of the first `few` generated ones.

    Resampling repeats samples, which adds to the distance's bias. The resamples are therefore
    moved so that their mean is the estimate: the interval shows the spread alone.
    """

    name = "frechet"
    title = "Fréchet distance"
    lower_is_better = True
    inputs = frozenset({"features"})
    decimals = 2

    def __call__(self, fake: Samples) -> Estimate:
        x, y = checked_features(fake.head(self.options.few), self.real)
        value = frechet_distance(x, y)
        if not self.options.resamples:
            return Estimate([value])
        resamples, seed = self.options.resamples, self.options.seed
        pairs = zip(
            bootstrap_counts(len(x), resamples, seed + 1)[1:],
            bootstrap_counts(len(y), resamples, seed)[1:],
            strict=True,
        )
        draws = np.array(
            [
                gaussian_frechet(*_moments(x, counts_x), *_moments(y, counts_y))
                for counts_x, counts_y in pairs
            ]
        )
        return Estimate(np.concatenate([[value], draws - draws.mean() + value]))


def _moments(x: Tensor, counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of x (n, d) with sample i counted counts[i] times."""
    x, weights = x.double(), torch.from_numpy(counts)
    mean = weights @ x / weights.sum()
    centred = x - mean
    return mean, (centred * weights[:, None]).T @ centred / (weights.sum() - 1)
