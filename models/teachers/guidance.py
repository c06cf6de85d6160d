"""The weight of classifier-free guidance: one number for all, or a range, in which every sample has
a weight of its own (Meng et al. 2023, arXiv 2210.03142).

Weights of a range travel in the condition, under :data:`WEIGHTS`: whoever is asked with guidance
takes them from there, row by row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.conditioning import Condition

WEIGHTS = "guidance"
GOLDEN = (math.sqrt(5) - 1) / 2
CLOSE = 0.2  # of a range: how far apart weights are that say much of one another


@dataclass(frozen=True)
class GuidanceRange:
    """Weights from ``low`` to ``high`` > ``low`` >= 0."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"

    def at(self, places: Tensor) -> Tensor:
        """Weights (n,) float32 at places (n,) in [0, 1) of the range."""
        return (self.low + (self.high - self.low) * places.double()).float()

    def evenly(self, n: int, first: int = 0) -> Tensor:
        """Weights (n,) of the samples ``first`` to ``first + n`` of an even mixture: however many
        there are, they fill the range (multiples of the golden ratio, Weyl's sequence).
        """
        return self.at((torch.arange(first, first + n, dtype=torch.float64) + 0.5) * GOLDEN % 1.0)

    def closeness(self, weights: Tensor) -> Tensor:
        """exp(-(w_i - w_j)^2 / (2 h^2)), (n, n), h = 0.2 of the range, for weights (n,)."""
        places = weights / (CLOSE * (self.high - self.low))
        return (-0.5 * (places[:, None] - places[None]).square()).exp()


Guidance: TypeAlias = float | GuidanceRange


def with_weights(condition: Condition, weights: Tensor) -> Condition:
    """The condition with a weight of guidance for each row: ``weights`` (n,), on any device."""
    rows = next(iter(condition.values()))
    return Condition({**dict(condition.items()), WEIGHTS: weights.to(rows.device)})


def split_weights(condition: Condition) -> tuple[Condition, Tensor | None]:
    """(the condition without weights, the weights (n,) or None)."""
    rest = {name: value for name, value in condition.items() if name != WEIGHTS}
    return Condition(rest), condition.get(WEIGHTS)


def asked_weights(condition: Condition, guidance: Guidance) -> tuple[Condition, float | Tensor]:
    """(the condition without weights, the weight that ``guidance`` asks for: its number, or (n,)).

    Raises InputError for a range where the condition has no weights, and for a number where it has
    some.
    """
    rest, weights = split_weights(condition)
    if isinstance(guidance, GuidanceRange):
        if weights is None:
            raise InputError(
                f"guidance in {guidance}: the condition has no weights; expected one for each "
                "sample (models.teachers.guidance.with_weights)"
            )
        return rest, weights
    if weights is not None:
        raise InputError(
            f"guidance = {guidance}: the condition has weights of its own; expected their range, "
            "or guidance 1.0"
        )
    return rest, guidance


def weight_closeness(condition: Condition | None, guidance: Guidance) -> Tensor | None:
    """:meth:`GuidanceRange.closeness` of a batch's weights; None where ``guidance`` is one number.

    Raises InputError where the condition has no weights.
    """
    if condition is None or not isinstance(guidance, GuidanceRange):
        return None
    _, weights = asked_weights(condition, guidance)
    assert isinstance(weights, Tensor)
    return guidance.closeness(weights)
