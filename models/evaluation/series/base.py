"""What metrics of time series share: both sets in the real set's scale, moved resamples.

Series are (n, C, L): n paths of C channels at L times, in any units that both sets share. Metrics
subtract the real set's mean and divide by its standard deviation, per channel over all paths and
times, so that their values do not change with the units of a channel.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import (
    DEFAULT,
    Estimate,
    Floats,
    Metric,
    MetricOptions,
    Samples,
    bootstrap_counts,
)


class SeriesMetric(Metric):
    """A figure of paths in standard units of the real set.

    `real_paths` (m, C, L) float64 are the real set's; `compare` gets the generated ones in the
    same units. A subclass that needs several channels sets `least_channels`. Raises InputError
    for sets of different shapes, fewer than two paths, NaN, or a constant real channel.
    """

    inputs = frozenset({"series"})
    least_channels = 1

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        raw = checked(real.series)
        self.check_channels(raw.shape[1])
        self.centre = raw.mean((0, 2), keepdim=True)
        self.scale = raw.std((0, 2), keepdim=True, correction=0)
        # rounding leaves a constant channel a deviation of about 1e-16 of its size
        constant = self.scale.flatten() <= 1e-12 * (1 + self.centre.abs().flatten())
        if bool(constant.any()):
            channel = int(constant.nonzero()[0])
            raise InputError(
                f"channel {channel} of the real series is constant: expected one that varies; "
                "leave it out of the data"
            )
        self.real_paths = (raw - self.centre) / self.scale

    @classmethod
    def check_channels(cls, channels: int) -> None:
        """InputError if series of so many channels cannot be measured."""
        if channels < cls.least_channels:
            raise InputError(
                f"metric {cls.name}: needs {cls.least_channels} channels or more, the series have "
                f"{channels}; leave it out"
            )

    def __call__(self, fake: Samples) -> Estimate:
        series = checked(fake.series)
        if series.shape[1:] != self.real_paths.shape[1:]:
            made, wanted = ("x".join(map(str, x.shape[1:])) for x in (series, self.real_paths))
            raise InputError(
                f"generated series are {made} (channels x length), the real ones {wanted}: "
                "expected the same"
            )
        return self.compare((series - self.centre) / self.scale)

    @abstractmethod
    def compare(self, paths: Tensor) -> Estimate:
        """The figure of paths (n, C, L) float64 in the real set's standard units."""

    def few_of(self, paths: Tensor) -> Tensor:
        """As many paths as every set has, for figures whose bias depends on their number."""
        return paths[: self.options.few]

    def counts(self, n: int, real: bool = False) -> Floats:
        """Bootstrap counts (1 + R, n): those of the real set are shared by all generated sets, and
        those of generated sets by all of equal size.
        """
        options = self.options
        return bootstrap_counts(n, options.resamples, options.seed + (0 if real else 1))


def checked(series: Tensor | None) -> Tensor:
    """Series (n, C, L) in float64 on the CPU; InputError if they cannot be measured."""
    if series is None:
        raise InputError("no series: expected (n, channels, length)")
    if series.ndim != 3 or len(series) < 2 or series.shape[1] < 1 or series.shape[2] < 2:
        raise InputError(
            f"series of shape {tuple(series.shape)}: expected (n, channels, length) with n >= 2 "
            "and length >= 2"
        )
    if not bool(series.isfinite().all()):
        raise InputError("series hold NaN or infinite values: the samples are broken")
    return series.detach().double().cpu()


def moved(draws: Floats) -> Estimate:
    """Resamples of a distance, moved so that their mean is the estimate draws[0].

    A distance of means is biased upwards by noise, and resampling adds that noise once more: the
    interval shows the spread alone.
    """
    if len(draws) > 1:
        draws = np.concatenate([draws[:1], draws[1:] - draws[1:].mean() + draws[0]])
    return Estimate(draws)


def to_numpy(paths: Tensor) -> Floats:
    """(n, C, L) float64 as an array."""
    return np.asarray(paths.to(torch.float64).numpy())
