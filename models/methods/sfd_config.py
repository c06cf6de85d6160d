"""Settings of SFD: every key below `method` with `kind: sfd`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from models.common import config as fields
from models.common.config import Count, Section


class SFDConfig(Section):
    """Choices of the method; equations: models/methods/sfd.py."""

    on_cached_grid: ClassVar[bool] = True  # no nfe above trajectories.intervals
    deterministic_paths: ClassVar[bool] = True  # trajectories.eta is 0

    kind: Literal["sfd"] = "sfd"
    nfe: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(fields.distinct)] = (
        10,
        5,
        2,
    )
    """Network calls per image. One student serves all of these; with several of them the network
    gets their number as an input.
    """
    power: Annotated[Literal[1, 2], BeforeValidator(fields.not_a_flag)] = 1
    """Exponent of the path error (the paper: 1)."""
    trainable: Literal["full", "lora"] = "full"
    lora_rank: fields.Rank = 16
