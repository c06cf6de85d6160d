"""Kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401) in any extractor's features.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
    k(x, y) = (x.y / d + 1)^3

Unbiased: 0 on average for equal laws, so an estimate may be negative. In float64. Kernel matrices
are made in blocks of rows, so memory grows with n, not with n^2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.evaluation.base import (
    DEFAULT,
    Estimate,
    Floats,
    Metric,
    MetricOptions,
    Samples,
    bootstrap_counts,
    checked_features,
    chunks,
)


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for features (n, d) and (m, d): (n, m) float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def kid(fake: Tensor, real: Tensor) -> float:
    """Unbiased squared MMD of features (n, d) and (m, d); may be negative."""
    return KID(Samples(features=real))(Samples(features=fake)).value


class KID(Metric):
    """KID of many generated sets against one real set, with paired intervals.

    A bootstrap resample is a vector of counts, and pairs of one sample with itself are left out, so
    that each resample is the same unbiased estimate, reweighted. The real set's resamples are
    shared by all generated sets. Generated sets of equal sizes share counts as well: sample i of
    each came from the same start noise.
    """

    name = "kid"
    title = "KID"
    lower_is_better = True
    inputs = frozenset({"features"})
    shows_interval = True
    decimals = 4
    floor = 1e-3

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        features, _ = checked_features(real, real)
        self.features = features.double()
        self.counts = bootstrap_counts(len(features), options.resamples, options.seed)
        self.within = mean_over_pairs(self.features, self.counts)

    def __call__(self, fake: Samples) -> Estimate:
        features, _ = checked_features(fake, self.features)
        counts = bootstrap_counts(len(features), self.options.resamples, self.options.seed + 1)
        within = mean_over_pairs(features, counts)
        across = (_weighted_kernel(features, self.features, counts) * self.counts).sum(1)
        across = across / (len(features) * len(self.features))
        return Estimate(within + self.within - 2 * across)


def mean_over_pairs(x: Tensor, counts: Floats) -> Floats:
    """Weighted mean of k over pairs of different samples of x (n, d), one per row of counts."""
    weight = counts.sum(1) ** 2 - (counts**2).sum(1)
    return np.asarray((_weighted_kernel(x, x, counts, pairs=True) * counts).sum(1) / weight)


def _weighted_kernel(x: Tensor, y: Tensor, counts: Floats, pairs: bool = False) -> Floats:
    """counts (R, n) @ kernel (n, m) -> (R, m), a block of kernel rows at a time.

    `pairs`: x and y are one set, and k of a sample with itself counts as 0.
    """
    total = np.zeros((len(counts), len(y)))
    for rows in chunks(len(x), len(y)):
        kernel = polynomial_kernel(x[rows], y)
        if pairs:
            diagonal = torch.arange(rows.stop - rows.start)
            kernel[diagonal, rows.start + diagonal] = 0
        total += counts[:, rows] @ kernel.numpy()
    return total
