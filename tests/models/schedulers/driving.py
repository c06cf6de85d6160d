"""A loop like the pipelines', and a network for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Network = Callable[[Tensor, Any], Tensor]


def wavy(x: Tensor, t: Any) -> Tensor:
    """Any network: bounded, and different at every time."""
    return torch.sin(3 * x + 0.01 * float(t))


def start(n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(
    scheduler: Any, x: Tensor, network: Network = wavy, seed: int | None = 1, **options: Any
) -> Tensor:
    """States (N + 1, n, *shape) that ``step`` returns, after ``set_timesteps``."""
    if seed is not None:
        options["generator"] = torch.Generator().manual_seed(seed)
    states = [x]
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        output = network(scale(states[-1], t), t)
        states.append(scheduler.step(output, t, states[-1], **options).prev_sample)
    return torch.stack(states)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    gap = float((found - expected).abs().max() / expected.abs().max())
    assert gap < tolerance, gap
