"""SwD on tiny networks: a schedule, its choices, batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.methods.base import ImageBatch
from models.methods.swd.schedule import make_schedule
from models.teachers.conditioning import class_condition

SCHEDULE = make_schedule([(1.0, 4), (0.9, 4), (0.7, 6), (0.4, 8)], 8, 2)


CONFIG: dict[str, Any] = {"fake_updates": 2}


MMD_ONLY: dict[str, Any] = {"dmd": 0.0, "gan": 0.0}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(step: int = 0, n: int = 6, labels: Tensor | None = None) -> ImageBatch:
    return ImageBatch(0.5 * normals(n, 1, 8, 8, seed=100 + step), class_condition(labels), step)
