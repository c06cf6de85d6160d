"""Settings of SwD, scale-wise distillation: every key below `method` with `kind: swd`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from models.common import config as fields
from models.common.config import Count, Flag, Natural, Section, Size

Level = fields.PositiveFraction
Levels = Annotated[tuple[Level, ...], Field(min_length=1)]


class PresetSchedule(Section):
    """The paper's sizes for 4 or 6 steps; `sigmas`: noise levels, None for the paper's."""

    kind: Literal["preset"] = "preset"
    steps: Annotated[Literal[4, 6], BeforeValidator(fields.not_a_flag)] = 4
    sigmas: Levels | None = None

    @model_validator(mode="after")
    def _one_level_a_step(self) -> Self:
        if self.sigmas is not None and len(self.sigmas) != self.steps:
            count, steps = len(self.sigmas), self.steps
            raise ValueError(
                f"sigmas has {count} entries: expected steps = {steps}, or null for the paper's"
            )
        return self


class AutoSchedule(Section):
    """The smallest sizes that the data's spectrum allows at `sigmas`, none below `smallest`
    (None: a quarter of the full size).
    """

    kind: Literal["auto"] = "auto"
    sigmas: Levels = (1.0, 0.8959, 0.7371, 0.6022)
    smallest: Size | None = None


class GivenSchedule(Section):
    """Pairs of noise level and size, such as [[1.0, 8], [0.6, 16]]."""

    kind: Literal["given"] = "given"
    pairs: Annotated[tuple[tuple[Level, Count], ...], Field(min_length=1)]


Schedule = Annotated[PresetSchedule | AutoSchedule | GivenSchedule, Field(discriminator="kind")]


class Dmd(Section):
    """(13). `gate`: off at sizes where the teacher's own KID, of `samples` images made in `steps`
    steps, is more than `limit` times worse than that of its reduced images.
    """

    weight: fields.Nonnegative = 1.0
    gate: Literal["on", "off"] = "on"
    limit: fields.Positive = 3.0
    samples: Annotated[int, Field(strict=True, ge=8)] = 500
    steps: Count = 20


class Gan(Section):
    """(15): weights for the student (the paper: 0.005) and for the fake network's features."""

    weight: fields.Nonnegative = 0.0
    features: fields.Nonnegative = 1e-2


class Mmd(Section):
    """(16). `compare`: batches within each class, or every image with its own target; `levels`:
    the part of the noise levels, from the clean end, that it looks at; `target` as mmd_target of
    Sig-DEG.
    """

    weight: fields.Nonnegative = 1.0
    compare: Literal["image", "batch"] = "batch"
    target: Literal["auto", "teacher", "data"] = "auto"
    levels: fields.PositiveFraction = 0.4
    kernel: Literal["linear", "rbf"] = "linear"
    huber: fields.Positive = 1e-3
    bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)


class Rates(Section):
    """Learning rates of the other networks; None: student.learning_rate."""

    fake: fields.LearningRate | None = 7e-4
    discriminator: fields.LearningRate | None = None


class SwDConfig(Section):
    """`fake_updates` of the fake network for one of the student (the paper: 5, at the student's
    rate); `backward_simulation`: inputs from the student's own earlier steps, else from teacher
    images; `conditioning_limit` as for Sig-DEG.
    """

    kind: Literal["swd"] = "swd"
    schedule: Schedule = PresetSchedule(sigmas=(1.0, 0.6, 0.4, 0.3))
    dmd: Dmd = Dmd()
    gan: Gan = Gan()
    mmd: Mmd = Mmd()
    fake_updates: Natural = 1
    rates: Rates = Rates()
    backward_simulation: Flag = True
    conditioning_limit: fields.Positive | None = 10.0
    trainable: Literal["full", "lora"] = "full"
    lora_rank: fields.Rank = 64

    @field_validator("schedule", mode="before")
    @classmethod
    def _preset_if_unsaid(cls, value: Any) -> Any:
        return {"kind": "preset", **value} if isinstance(value, dict) else value

    @property
    def nfe(self) -> tuple[int, ...]:
        """The one number of network calls: the schedule's length."""
        given = self.schedule
        if isinstance(given, PresetSchedule):
            return (given.steps,)
        return (len(given.sigmas if isinstance(given, AutoSchedule) else given.pairs),)

    @model_validator(mode="after")
    def _choices_agree(self) -> Self:
        if not (self.dmd.weight or self.mmd.weight):
            alone = "a GAN alone does not converge; " if self.gan.weight else ""
            raise ValueError(f"dmd.weight and mmd.weight are 0: {alone}expected one above 0")
        if self.dmd.weight and not self.fake_updates:
            raise ValueError(
                "fake_updates = 0: the loss dmd needs at least 1; or set dmd.weight to 0"
            )
        if self.mmd.weight and self.mmd.compare == "image" and self.backward_simulation:
            raise ValueError(
                "backward_simulation = true: inputs from noise have no image of their own, which "
                "mmd.compare = image needs; set backward_simulation to false or mmd.compare to "
                "batch"
            )
        return self
