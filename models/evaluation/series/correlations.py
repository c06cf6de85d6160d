"""Dependence over time and between channels.

    rho_ij(k) = mean over paths and t of (x_i(t) - m_i)(x_j(t + k) - m_j) / (s_i s_j)

with the set's own means m and standard deviations s, over all paths and times.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.evaluation.base import DEFAULT, Estimate, Floats, MetricOptions, Samples
from models.evaluation.series.base import SeriesMetric, moved, to_numpy

MOST_LAGS = 20
Pairs = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]


def lags_of(length: int) -> int:
    """The largest lag: half the length, at most 20; longer ones rest on few products."""
    return max(1, min(MOST_LAGS, length // 2))


class _Lagged(SeriesMetric):
    """Root mean square over pairs of channels and lags of the difference of rho.

    Takes as many paths of each generated set, since noise adds to the difference.
    """

    lower_is_better = True
    decimals = 4
    floor = 1e-3
    first_lag: ClassVar[int]

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        self.lags = lags_of(self.real_paths.shape[2])
        self.real_correlations = self._correlations(self.real_paths, real=True)

    def compare(self, paths: Tensor) -> Estimate:
        gaps = self._correlations(self.few_of(paths)) - self.real_correlations
        return moved(np.sqrt(np.square(gaps).mean((1, 2))))

    def _correlations(self, paths: Tensor, real: bool = False) -> Floats:
        """(1 + R, pairs, lags) of the set and its resamples."""
        x = self.transformed(to_numpy(paths))
        found = correlations(x, self.lags, self.counts(len(x), real))
        pairs = self.pairs(x.shape[1])
        return found[:, pairs[0], pairs[1], self.first_lag :]

    def transformed(self, x: Floats) -> Floats:
        return x

    @abstractmethod
    def pairs(self, channels: int) -> Pairs:
        """The channels i and j of the pairs that are compared."""


class ACF(_Lagged):
    """Autocorrelation at lags 1 to half the length, at most 20."""

    name = "acf"
    title = "Autocorrelation"
    first_lag = 1

    def pairs(self, channels: int) -> Pairs:
        return np.arange(channels), np.arange(channels)


class AbsoluteACF(ACF):
    """Autocorrelation of absolute values, which sees clusters of volatility in returns.

    Absolute deviations from the real channel's mean.
    """

    name = "acf_abs"
    title = "Autocorrelation, absolute"

    def transformed(self, x: Floats) -> Floats:
        return np.abs(x)


class CrossCorrelation(_Lagged):
    """Correlation of different channels at lags 0 to half the length, at most 20, both orders."""

    name = "cross_correlation"
    title = "Cross-correlation"
    first_lag = 0
    least_channels = 2

    def pairs(self, channels: int) -> Pairs:
        i, j = np.nonzero(~np.eye(channels, dtype=bool))
        return i, j


def correlations(x: Floats, lags: int, counts: Floats | None = None) -> Floats:
    """rho_ij(k) of paths (n, C, L) for lags 0 to `lags` < L: (R, C, C, lags + 1).

    Row r of `counts` (R, n) says how often each path is taken; None: each once. Everything is a
    ratio of means over paths, so resamples reweight the paths' own sums. 0 for constant channels.
    """
    n, channels, length = x.shape
    counts = np.ones((1, n)) if counts is None else counts
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ x.mean(2)  # (R, C)
    squares = share @ np.square(x).mean(2)
    deviation = np.sqrt(np.maximum(squares - mean**2, 0))
    scale = deviation[:, :, None] * deviation[:, None, :]
    found = np.empty((len(counts), channels, channels, lags + 1))
    for k in range(lags + 1):
        early, late = x[:, :, : length - k], x[:, :, k:]
        products = np.einsum("nit,njt->nij", early, late) / (length - k)
        product = (share @ products.reshape(n, -1)).reshape(-1, channels, channels)
        m_i, m_j = mean[:, :, None], mean[:, None, :]
        early_i, late_j = (share @ early.mean(2))[:, :, None], (share @ late.mean(2))[:, None, :]
        covariance = product - m_i * late_j - early_i * m_j + m_i * m_j
        found[..., k] = np.divide(
            covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-24
        )
    return found
