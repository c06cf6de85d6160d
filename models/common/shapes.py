"""Broadcasting over states of any number of dimensions."""

from __future__ import annotations

from torch import Tensor


def append_dims(values: Tensor, like: Tensor) -> Tensor:
    """Per-row values (n,) as (n, 1, ..., 1), so that they broadcast against ``like`` (n, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
