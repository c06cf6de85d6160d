"""What a method will ask of its networks, told from its settings alone: for `fewstep estimate`.

Nothing is run here. A method that can tell has a :class:`Costs`, beside the code that it describes
(`models/methods/<method>/costs.py`); tests compare it with the calls that a run makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from models.methods.base import MethodContext

Gradient = Literal["none", "input", "weights"]
CODEC = ("encode", "decode")  # calls of the autoencoder, no calls of a network


class Call(NamedTuple):
    """One call of a network.

    ``network``: student, teacher, fake, target or frozen; or encode, decode, of the autoencoder.
    ``rows``: that pass through it for one sample (2 where guidance asks twice; a mean where chance
    decides). ``gradient``: of its weights, of its input alone, or none. ``size``: height and width
    of the states, None for the teacher's own.
    """

    network: str
    rows: float = 1.0
    gradient: Gradient = "none"
    size: int | None = None


Updates = Sequence[tuple[str, Sequence[Call]]]
"""(role, the calls of one batch) of each update of an optimizer step, in their order."""


class Costs(ABC):
    """The calls of one method; ``real``: whether its batches have training images beside them.

    ``optimized``: roles with an optimizer; ``copies``: further networks as large as the teacher's
    that are in memory in training; ``channels``: of the student's input; ``recomputes``: what
    gradient checkpointing computes again at once, a whole call or one block of the network.
    """

    optimized: tuple[str, ...] = ("student",)
    copies: tuple[str, ...] = ()
    recomputes: ClassVar[Literal["call", "block"]] = "call"

    def __init__(self, context: MethodContext, real: bool = False):
        self.context, self.real = context, real
        self.teacher, self.config = context.teacher, context.config
        self.channels = context.teacher.shape[0]

    @abstractmethod
    def updates(self, step: int, micro: int = 0) -> Updates:
        """Of an optimizer step's micro-batch. Where steps are alike the same object comes again:
        recipes have hundreds of thousands of them.
        """

    @abstractmethod
    def sampling(self, nfe: int) -> Sequence[Call]:
        """The calls of one sample with ``nfe`` steps."""

    def figures(self, nfe: int) -> Sequence[Call]:
        """The calls of ``validation_figures``, for one path."""
        return ()

    def building(self) -> Sequence[Call]:
        """Those of making the untrained student; ``rows`` in all."""
        return ()

    def preparation(self, count: int) -> Sequence[Call]:
        """Those of ``prepare``; ``rows`` in all. ``count``: samples of a full validation."""
        return ()


def guided(context: MethodContext) -> int:
    """Rows of one guided call of the teacher: 2 where guidance asks with and without a condition,
    1 where it is off or an input of the network.
    """
    once = context.guidance == 1.0 or not context.teacher.conditional
    return 1 if once or getattr(context.teacher, "null_prompt", "") is None else 2


def scaled(calls: Sequence[Call], factor: float) -> list[Call]:
    """The same calls for ``factor`` samples."""
    return [call._replace(rows=call.rows * factor) for call in calls]
