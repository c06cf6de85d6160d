"""Signature MMD with a permutation test (Chevyrev and Oberhauser 2022, arXiv 1810.10971; the test:
Gretton et al. 2012).

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
    k(x, y) = <Phi(x), Phi(y)>,   Phi: the truncated signature, dilated to a bounded size

Unbiased: 0 on average for equal laws, so an estimate may be negative. The kernel is linear in Phi,
so that sums over pairs are squares of sums: time and memory grow with n.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from models.evaluation.base import DEFAULT, Estimate, Floats, MetricOptions, Samples
from models.evaluation.series.signatures import SignatureMetric, normalised

PERMUTATIONS = 500


class SigMMD(SignatureMetric):
    """The unbiased squared MMD of all paths of a set, with a paired bootstrap interval."""

    name = "sig_mmd"
    title = "Sig-MMD²"
    lower_is_better: ClassVar[bool | None] = True
    shows_interval = True
    decimals = 4
    floor = 1e-3

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        self.real_features = self._features(self.real_paths)

    def _features(self, paths: Tensor) -> Floats:
        return normalised(self.signatures(paths), 2 * paths.shape[1] + 1)

    def compare(self, paths: Tensor) -> Estimate:
        features = self._features(paths)
        x, y = self.counts(len(features)), self.counts(len(self.real_features), real=True)
        return Estimate(weighted_mmd2(features, self.real_features, x, y))


class SigMMDPValue(SigMMD):
    """p value of the permutation test that both sets have one law, from as many paths of each.

    Uniform on (0, 1] for equal laws. Its power grows with the number of paths, so it is no figure
    of quality.
    """

    name = "sig_mmd_p"
    title = "Sig-MMD p"
    lower_is_better = None
    shows_interval = False
    decimals = 3

    def compare(self, paths: Tensor) -> Estimate:
        features, real = self._features(self.few_of(paths)), self.few_of(self.real_paths)
        real_features = self.real_features[: len(real)]
        return Estimate([permutation_test(features, real_features, self.options.seed)])


def weighted_mmd2(x: Floats, y: Floats, counts_x: Floats, counts_y: Floats) -> Floats:
    """MMD^2 (R,) of features (n, d) and (m, d), sample i counted counts[r, i] times.

    Pairs of one sample with itself, copies included, are left out.
    """
    sums = counts_x @ x, counts_y @ y
    across = (sums[0] * sums[1]).sum(1) / (counts_x.sum(1) * counts_y.sum(1))
    within = [
        ((total**2).sum(1) - counts**2 @ (z**2).sum(1)) / (counts.sum(1) ** 2 - (counts**2).sum(1))
        for total, counts, z in zip(sums, (counts_x, counts_y), (x, y), strict=True)
    ]
    return np.asarray(within[0] + within[1] - 2 * across)


def permutation_test(x: Floats, y: Floats, seed: int, permutations: int = PERMUTATIONS) -> float:
    """The share of relabellings of the pooled features (n + m, d) with an MMD^2 at least as large,
    that of the sets themselves included: a valid p value, at least 1 / (permutations + 1).
    """
    pooled = np.concatenate([x, y])
    labels = np.zeros((permutations + 1, len(pooled)))
    labels[:, : len(x)] = 1
    np.random.default_rng([seed, 37]).permuted(labels[1:], axis=1, out=labels[1:])
    values = weighted_mmd2(pooled, pooled, labels, 1 - labels)
    # rounding differs between relabellings: the set itself must not count as above itself
    return float((values >= values[0] - 1e-12 * (1 + abs(values[0]))).mean())
