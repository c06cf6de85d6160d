"""Settings of SwD, scale-wise distillation: every key below `method` with `kind: swd`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from models.common import config as fields
from models.common.config import Count, Flag, Natural, Section, Size

Level = fields.PositiveFraction
Levels = Annotated[tuple[Level, ...], Field(min_length=1)]


class PresetSchedule(Section):
    """The sizes of the paper for 4 or 6 steps."""

    kind: Literal["preset"] = "preset"
    """preset: sizes of the paper; auto: from the spectrum of the data."""
    steps: Annotated[Literal[4, 6], BeforeValidator(fields.not_a_flag)] = 4
    sigmas: Levels | None = None
    """Noise levels of flow matching, one a step; null = the paper's for SD3.5."""

    @model_validator(mode="after")
    def _one_level_a_step(self) -> Self:
        if self.sigmas is not None and len(self.sigmas) != self.steps:
            count, steps = len(self.sigmas), self.steps
            raise ValueError(
                f"sigmas has {count} entries: expected steps = {steps}, or null for the paper's"
            )
        return self


class AutoSchedule(Section):
    """The smallest sizes that the spectrum of the data allows at `sigmas`."""

    kind: Literal["auto"] = "auto"
    """preset: sizes of the paper; auto: from the spectrum of the data."""
    sigmas: Levels = (1.0, 0.8959, 0.7371, 0.6022)
    smallest: Size | None = None
    """Smallest size; null = a quarter of the full size."""


class GivenSchedule(Section):
    """Every step said by hand."""

    kind: Literal["given"] = "given"
    """preset: sizes of the paper; auto: from the spectrum of the data."""
    pairs: Annotated[tuple[tuple[Level, Count], ...], Field(min_length=1)]
    """Noise level and size of each step, such as [[1.0, 8], [0.6, 16]]."""


Schedule = Annotated[PresetSchedule | AutoSchedule | GivenSchedule, Field(discriminator="kind")]


class Dmd(Section):
    """Distribution matching, (13) of models/methods/swd/method.py."""

    weight: fields.Nonnegative = 1.0
    levels: fields.PositiveFraction = 0.6
    """The part of the times, from the clean end, that (13) and (15) look at (the paper: 0.79)."""
    gate: Literal["on", "off"] = "on"
    """Off at sizes where the teacher's own samples are too poor."""
    limit: fields.Positive = 3.0
    """How many times worse than that of its reduced images their KID may be."""
    samples: Annotated[int, Field(strict=True, ge=8)] = 500
    """Images of the gate, per size."""
    steps: Count = 20
    """Teacher steps of the gate."""


class Gan(Section):
    """The adversarial term, (15)."""

    weight: fields.Nonnegative = 0.0
    """For the student (the paper: 0.005)."""
    features: fields.Nonnegative = 1e-2
    """For the fake network's features."""


class Mmd(Section):
    """The patch loss, (16)."""

    weight: fields.Nonnegative = 1.0
    compare: Literal["image", "batch"] = "batch"
    """batch: batches within each class; image: every image with its own target, but batches at
    the first step.
    """
    target: Literal["auto", "teacher", "data"] = "auto"
    """What to compare with; auto: the training split's images if the teacher is unconditional
    and makes images of their shape.
    """
    levels: fields.PositiveFraction = 0.4
    """The part of the times, from the clean end, that is looked at."""
    kernel: Literal["linear", "rbf"] = "linear"
    huber: fields.Positive = 1e-3
    """Of the linear kernel."""
    bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Of RBF kernels, batches' included: multiples of the median distance."""


class Rates(Section):
    """Learning rates of the networks beside the student."""

    fake: fields.LearningRate | None = 7e-4
    """Learning rate of the fake network; null = student.learning_rate."""
    discriminator: fields.LearningRate | None = None
    """Learning rate of the discriminator; null = student.learning_rate."""


class SwDConfig(Section):
    """Choices of the method; equations: models/methods/swd/method.py."""

    data_kinds: ClassVar[tuple[str, ...]] = ("images",)  # scales are sizes of images

    kind: Literal["swd"] = "swd"
    schedule: Schedule = PresetSchedule(sigmas=(1.0, 0.6, 0.4, 0.3))
    dmd: Dmd = Dmd()
    gan: Gan = Gan()
    mmd: Mmd = Mmd()
    fake_updates: Natural = 1
    """Of the fake network for one of the student (the paper: 5)."""
    rates: Rates = Rates()
    backward_simulation: Flag = True
    """Inputs from the student's own earlier steps; false: from teacher images."""
    conditioning_limit: fields.Positive | None = 10.0
    """Bound on how far an output error is amplified at high noise; null = none."""
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
