"""The section `trajectories`: the teacher's fine chain and what is kept of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.common import config as common
from models.common.config import Count, Flag, Natural, Precision, Section, Seed, Workers


class IndexGrid(Section):
    kind: Literal["index"] = "index"
    """Where the coarse steps lie; adaptive: to how the teacher moves."""


class AdaptiveGrid(Section):
    kind: Literal["adaptive"] = "adaptive"
    """Where the coarse steps lie; adaptive: to how the teacher moves."""


class LogSnrGrid(Section):
    kind: Literal["logsnr"] = "logsnr"
    """Where the coarse steps lie; adaptive: to how the teacher moves."""


class GivenGrid(Section):
    kind: Literal["given"] = "given"
    """Where the coarse steps lie; adaptive: to how the teacher moves."""
    points: Annotated[tuple[Natural, ...], Field(min_length=2)]
    """Fine step of each coarse boundary, from 0 to steps."""

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
    """Teacher paths to learn from."""
    validation: Count = 2000
    """Teacher paths for path error and for choosing the best student."""
    steps: Annotated[int, Field(strict=True, ge=2, le=1000)] = 100
    """K, steps of the teacher's fine chain."""
    eta: common.Fraction = 1.0
    """Stochasticity: 0 = DDIM, 1 = DDPM."""
    intervals: Annotated[int, Field(strict=True, ge=1, le=1000)] = 20
    """Coarse intervals kept; every entry of method.nfe divides it."""
    grid: Grid = AdaptiveGrid()
    depth: Annotated[int, Field(strict=True, ge=1, le=6)] = 2
    """Of the partial signature."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored arrays."""
    precision: Precision = "float32"
    """Of the teacher's forward passes."""
    compile: Flag = False
    """torch.compile the teacher."""
    lane: Count = 64
    """States per network call; part of the data's identity, since kernels round by batch."""
    batch_size: Count = 128
    """Trajectories advanced together; changes memory and speed, never bytes."""
    shard_size: Count = 128
    """Paths per shard; finished shards survive a kill."""
    workers: Workers = 0
    """Ray workers; 0 = in this process."""
    guidance: common.Nonnegative = 1.0
    """Classifier-free guidance of conditional teachers; 1 = off."""
    guidance_range: tuple[common.Nonnegative, common.Nonnegative] | None = None
    """Lowest and highest guidance, an input of the student then; `guidance` is its default there;
    null = `guidance` alone.
    """
    classes: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    """Labels to generate for conditional teachers; null = all, evenly."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _guidance_in_its_range(self) -> Self:
        if self.guidance_range is None:
            return self
        low, high = self.guidance_range
        if low >= high:
            raise ValueError(
                f"guidance_range = [{low:g}, {high:g}]: expected a lower weight, then a higher one;"
                " for one weight use guidance alone"
            )
        if not low <= self.guidance <= high:
            raise ValueError(
                f"guidance = {self.guidance:g}: expected one within guidance_range = [{low:g}, "
                f"{high:g}], since the student samples at it where nobody says a weight"
            )
        return self

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
