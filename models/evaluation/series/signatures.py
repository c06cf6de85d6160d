"""Expected signatures of paths, and the distance of two laws by them.

A path x of C channels at L times becomes a path in d = 2 C + 1 dimensions:

    (t, lead, lag) = (0, 0, 0) -> (0, x_1, 0) -> (0, x_1, x_1) -> (t_2, x_2, x_1) -> (t_2, x_2, x_2)
    -> ..,    t from 0 to 1

Time makes it unique, the start at the origin shows where it begins, and the areas between lead and
lag are its quadratic variation, which time alone hardly shows at low depth (Chevyrev and
Kormilitzin 2016, arXiv 1603.03788). Its signature up to depth m has d + d^2 + .. + d^m words
(iisignature). The expected signature determines the law of bounded paths (Chevyrev and Lyons 2016);
level k holds joint moments of order k.

    Sig-W1(mu, nu) = |E_mu S(x) - E_nu S(x)|

is the 1-Wasserstein distance over linear functionals of the signature of norm one (Ni et al. 2021,
Sig-Wasserstein GANs, arXiv 2111.01207). Each channel is scaled so that the real paths' mean
quadratic variation is one: level k would otherwise grow like its k/2-th power, and a few words
would hide all others.
"""

from __future__ import annotations

import itertools

import iisignature
import numpy as np
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import DEFAULT, Estimate, Floats, MetricOptions, Samples
from models.evaluation.series.base import SeriesMetric, moved, to_numpy

DEEPEST = 4  # skewness and kurtosis, where there are few channels
MOST_WORDS = 1000


def depth_for(channels: int) -> int:
    """The depth of signatures: 4 for 1 or 2 channels, 3 for 3 or 4, 2 for 5 to 15.

    The largest depth up to 4 whose signature has at most 1,000 words. A mean of more words than
    there are paths is mostly noise. Raises InputError for more channels: depth 1 sees end points
    alone.
    """
    fits = [m for m in range(2, DEEPEST + 1) if words(channels, m) <= MOST_WORDS]
    if not fits:
        raise InputError(
            f"signatures of {channels} channels: expected at most 15; choose other metrics or "
            "fewer channels"
        )
    return max(fits)


def words(channels: int, depth: int) -> int:
    """The number of words of the signature of an augmented path."""
    return sum((2 * channels + 1) ** k for k in range(1, depth + 1))


def lead_lag(paths: Floats) -> Floats:
    """Paths (n, C, L) with time, lead and lag, from the origin: (n, 2 L + 1, 2 C + 1)."""
    n, channels, length = paths.shape
    points = np.zeros((n, 2 * length + 1, 2 * channels + 1))
    values = np.repeat(paths.transpose(0, 2, 1), 2, axis=1)
    points[:, 1:, 0] = np.repeat(np.linspace(0, 1, length), 2)
    points[:, 1:, 1 : channels + 1] = values  # the lead moves first
    points[:, 2:, channels + 1 :] = values[:, :-1]  # the lag follows
    return points


def signatures(paths: Floats, depth: int) -> Floats:
    """Signatures (n, words) of paths (n, C, L), augmented: levels 1 to `depth`."""
    return np.asarray(iisignature.sig(lead_lag(paths), depth), dtype=np.float64)


def unit_scale(paths: Floats) -> Floats:
    """Factors (C, 1) that give paths (n, C, L) a mean quadratic variation of one.

    At most 1: smooth paths, whose variation is below that of their level, stay as they are.
    """
    variation = np.square(np.diff(paths, axis=2)).sum(2).mean(0)
    return np.asarray(1 / np.sqrt(np.maximum(variation, 1)))[:, None]


class SignatureMetric(SeriesMetric):
    """A figure of scaled signatures."""

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        self.depth = depth_for(self.real_paths.shape[1])
        self.path_scale = unit_scale(to_numpy(self.real_paths))

    @classmethod
    def check_channels(cls, channels: int) -> None:
        depth_for(channels)

    def signatures(self, paths: Tensor) -> Floats:
        """Signatures (n, words) of paths (n, C, L) in standard units."""
        return signatures(to_numpy(paths) * self.path_scale, self.depth)


class SigW1(SignatureMetric):
    """Sig-W1 of as many paths of each generated set to all real ones.

    Resamples reweight the signatures of single paths; no signature is computed twice.
    """

    name = "sig_w1"
    title = "Sig-W1"
    lower_is_better = True
    shows_interval = True
    decimals = 4
    floor = 1e-3

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        self.real_means = self._means(self.real_paths, real=True)

    def compare(self, paths: Tensor) -> Estimate:
        gaps = self._means(self.few_of(paths)) - self.real_means
        return moved(np.linalg.norm(gaps, axis=1))

    def _means(self, paths: Tensor, real: bool = False) -> Floats:
        """Expected signatures (1 + R, words): of the set, then of its resamples."""
        counts = self.counts(len(paths), real)
        return np.asarray(counts @ self.signatures(paths) / len(paths))


def normalised(features: Floats, dimensions: int, limit: float = 4.0) -> Floats:
    """Signatures (n, words) dilated so that 1 + |S|^2 stays below 2 * limit.

    Level k is multiplied by lambda^k; lambda in (0, 1] solves 1 + sum_k lambda^{2k} |S_k|^2 =
    psi(1 + |S|^2), psi(x) = x up to `limit`, 2 limit - limit^2 / x above. Bounded features make
    the expected signature determine any law of paths, heavy tails included (Chevyrev and
    Oberhauser 2022, arXiv 1810.10971).
    """
    depth, total = 0, 0
    ends = [0]
    while total < features.shape[1]:
        depth += 1
        total += dimensions**depth
        ends.append(total)
    levels = [slice(*pair) for pair in itertools.pairwise(ends)]
    # (n, depth): |S_k|^2
    squares = np.stack([np.square(features[:, level]).sum(1) for level in levels], axis=1)
    size = 1 + squares.sum(1)
    target = np.where(size <= limit, size, 2 * limit - limit**2 / size)
    powers = 2 * np.arange(1, depth + 1)
    low, high = np.zeros(len(features)), np.ones(len(features))
    for _ in range(60):  # bisection; the left side grows with lambda
        middle = (low + high) / 2
        below = 1 + (squares * middle[:, None] ** powers).sum(1) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    scale = np.where(size <= limit, 1.0, high)
    dilated = features.copy()
    for k, level in enumerate(levels, start=1):
        dilated[:, level] *= scale[:, None] ** k
    return dilated
