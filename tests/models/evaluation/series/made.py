"""Series with known laws for the metrics' tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.evaluation.base import Estimate, Metric, MetricOptions, Samples


def ar1(
    n: int, seed: int, phi: float = 0.8, std: float = 1.0, length: int = 24, channels: int = 1
) -> Tensor:
    """Stationary AR(1) paths (n, channels, length) of deviation `std`, independent channels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, channels, length))
    for t in range(1, length):
        x[:, :, t] = phi * x[:, :, t - 1] + np.sqrt(1 - phi**2) * x[:, :, t]
    return torch.from_numpy(std * x)


def measured(
    metric: type[Metric], real: Tensor, fake: Tensor, options: MetricOptions | None = None
) -> Estimate:
    return metric(Samples(series=real), options or MetricOptions())(Samples(series=fake))
