"""The section `trajectories`: the teacher's fine chain and what is kept of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.common import config as common
from models.common.config import Count, Flag, Natural, Precision, Section, Seed, Workers


class IndexGrid(Section):
    kind: Literal["index"] = "index"


class AdaptiveGrid(Section):
    kind: Literal["adaptive"] = "adaptive"


class LogSnrGrid(Section):
    kind: Literal["logsnr"] = "logsnr"


class GivenGrid(Section):
    kind: Literal["given"] = "given"
    points: Annotated[tuple[Natural, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _increasing_from_zero(self) -> Self:
        if self.points[0] != 0:
            raise ValueError(f"points start at {self.points[0]}: expected 0")
        if any(left >= right for left, right in zip(self.points, self.points[1:], strict=False)):
            raise ValueError("points: expected strictly increasing step indices")
        return self


Grid = Annotated[AdaptiveGrid | IndexGrid | LogSnrGrid | GivenGrid, Field(discriminator="kind")]


class Trajectories(Section):
    train: Count = 768
    validation: Count = 2000
    steps: Annotated[int, Field(strict=True, ge=2, le=1000)] = 100
    eta: common.Fraction = 1.0
    intervals: Annotated[int, Field(strict=True, ge=1, le=1000)] = 20
    grid: Grid = AdaptiveGrid()
    depth: Annotated[int, Field(strict=True, ge=1, le=6)] = 2
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "float32"
    compile: Flag = False
    lane: Count = 64
    batch_size: Count = 128
    shard_size: Count = 128
    workers: Workers = 0
    guidance: common.Nonnegative = 1.0
    classes: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _grid_fits_the_chain(self) -> Self:
        if self.intervals > self.steps:
            raise ValueError(f"intervals = {self.intervals}: expected at most steps = {self.steps}")
        if isinstance(self.grid, GivenGrid):
            if self.grid.points[-1] != self.steps:
                raise ValueError(
                    f"grid.points end at {self.grid.points[-1]}: expected steps = {self.steps}"
                )
            if len(self.grid.points) != self.intervals + 1:
                count = len(self.grid.points)
                expected = f"expected intervals + 1 = {self.intervals + 1}"
                raise ValueError(f"grid.points has {count} entries: {expected}")
        return self
