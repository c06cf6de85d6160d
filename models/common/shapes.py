"""Broadcasting over states of any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

AT_ONCE = 2**20  # entries of states; a network holds some hundred times as much for them


def append_dims(values: Tensor, like: Tensor) -> Tensor:
    """Per-row values (n,) as (n, 1, ..., 1), so that they broadcast against ``like`` (n, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def rows_at_once(shape: Sequence[int], most: int) -> int:
    """How many states of ``shape`` are in a network at once where the params do not say:
    ``most``, or fewer of large states, 64 of Stable Diffusion 1.5, 4 of SD3 at 1024 pixels.
    """
    return max(1, min(most, AT_ONCE // math.prod(shape)))
