"""Distances of the laws at single times."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from models.evaluation.base import Estimate, Floats
from models.evaluation.series.base import SeriesMetric, moved, to_numpy


class Marginal(SeriesMetric):
    """The mean over channels and times of the 1-Wasserstein distance of the marginal laws.

    In standard deviations of the real channel. Takes as many paths of each generated set: the
    distance of two samples of one law falls with their number.
    """

    name = "marginal"
    title = "Marginal W1"
    lower_is_better = True
    decimals = 4
    floor = 1e-3

    def compare(self, paths: Tensor) -> Estimate:
        x, y = to_numpy(self.few_of(paths)), to_numpy(self.real_paths)
        counts = self.counts(len(x)), self.counts(len(y), real=True)
        return moved(wasserstein(x, y, *counts).mean((1, 2)))


def wasserstein(x: Floats, y: Floats, counts_x: Floats, counts_y: Floats) -> Floats:
    """W1 = integral |F - G| of x (n, ...) and y (m, ...) in each place: (R, ...).

    Row r of the counts (R, n) and (R, m) says how often each sample is taken. For counts of one it
    is `scipy.stats.wasserstein_distance`; here the order is found once for all places and rows.
    """
    pooled = np.concatenate([x, y]).reshape(len(x) + len(y), -1)
    order = pooled.argsort(0, kind="stable")
    gaps = np.diff(np.take_along_axis(pooled, order, 0), axis=0)  # (n + m - 1, places)
    distances = np.empty((len(counts_x), pooled.shape[1]))
    for row, (a, b) in enumerate(zip(counts_x, counts_y, strict=True)):
        steps = np.concatenate([a / a.sum(), -b / b.sum()])
        # F - G between neighbouring values
        apart = np.abs(np.cumsum(steps[order], axis=0)[:-1])
        distances[row] = (apart * gaps).sum(0)
    return distances.reshape(len(counts_x), *x.shape[1:])
