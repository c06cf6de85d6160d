"""Samples for the metrics' tests."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Gaussian features (n, d), float64."""
    return mean + std * torch.randn(
        n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
