"""Settings of consistency distillation: every key below `method` with `kind: consistency`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from models.common import config as fields
from models.common.config import Count, Section


class ConsistencyConfig(Section):
    """Choices of the method; equations: models/methods/consistency.py."""

    on_cached_grid: ClassVar[bool] = True  # no nfe above trajectories.intervals
    deterministic_paths: ClassVar[bool] = True  # trajectories.eta is 0

    kind: Literal["consistency"] = "consistency"
    nfe: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(fields.distinct)] = (
        10,
        5,
        2,
    )
    """Network calls per image; training is the same for all of them."""
    distance: Literal["l2", "l1", "huber"] = "l2"
    """Between the student's and the target's answer: squared, absolute, or pseudo-Huber."""
    target_decay: fields.Decay = 0.95
    """Decay of the moving average that gives the target; 0 = the student itself."""
    sigma_min: fields.Positive = 0.002
    """sigma / alpha at which the answer is the state itself."""
    sigma_data: fields.Positive | None = None
    """Standard deviation of the data, in the weights of state and network; null = 0.5 for images, 1
    for scaled series.
    """
    trainable: Literal["full", "lora"] = "full"
    lora_rank: fields.Rank = 16
