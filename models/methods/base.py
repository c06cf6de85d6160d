"""What the training loop asks of a distillation method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.teachers.conditioning import Condition

Losses = tuple[Tensor, dict[str, Tensor]]


class Method(Protocol):
    """Sig-DEG, SwD and the teacher's own training all look like this to
    :func:`models.training.loop.train`.

    ``networks``: networks with an optimizer each, by name. ``ema``: names of those that keep an
    EMA.
    """

    networks: Mapping[str, nn.Module]
    ema: tuple[str, ...]

    def updates(self, step: int) -> Sequence[str]:
        """Players to update at this step, in order; a name may come several times."""
        ...

    def loss(self, role: str, batch: Any, generator: torch.Generator) -> Losses:
        """Scalar loss of one role on one batch and the terms worth logging; pure: no backward, no
        optimizer.
        """
        ...

    def sample(self, noise: Tensor, condition: Condition | None = None, **options: Any) -> Tensor:
        """Images or latents (n, C, H, W) from start noise (n, C, H, W)."""
        ...
