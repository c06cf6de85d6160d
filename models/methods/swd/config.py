"""Settings of SwD, scale-wise distillation: every key below `method` with `kind: swd`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from models.common import config as fields
from models.common.config import Count, Flag, Natural, Section, Size

Level = fields.PositiveFraction
Levels = Annotated[tuple[Level, ...], Field(min_length=1)]
LevelRange = Level | Levels
"""What a loss looks at: a part of the times, from the clean end, or a list of noise levels of flow
matching, of which each is as likely.
"""


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
    levels: LevelRange = 0.6
    """What (13) and the student's (15) look at: the lower part of times, or a list of noise levels
    of flow matching (the authors': 16 levels up to 0.79).
    """
    fake_levels: LevelRange = 1.0
    """The same for (14), the fake network's own loss (the authors': 28 levels)."""
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
    levels: LevelRange | None = None
    """What the discriminator looks at; null = dmd.levels (the authors': 28 levels)."""
    updates: Count = 1
    """Of the discriminator for one of the student (the authors': as many as of the fake)."""
    critic: Literal["shallow", "deep"] = "shallow"
    """shallow: two linear layers; deep: the authors' four of falling width."""


class Mmd(Section):
    """The patch loss, (16)."""

    weight: fields.Nonnegative = 1.0
    compare: Literal["image", "batch"] = "batch"
    """batch: batches within each class; image: every image with its own target, but batches at
    the first step.
    """
    first_step: Literal["auto", "batch", "image"] = "auto"
    """What the first step compares with compare: image; auto: its own image for prompts, else
    batches, since its input is pure noise (the authors': image).
    """
    target: Literal["auto", "teacher", "data"] = "auto"
    """What to compare with; auto: the training split's images if the teacher is unconditional
    and makes images of their shape.
    """
    features: Literal["teacher", "fake"] = "teacher"
    """Whose middle block is compared (the authors': fake; the paper: teacher)."""
    levels: LevelRange = 0.4
    """What is looked at: the lower part of times, or a list of noise levels of flow matching (the
    authors': 10 levels up to 0.602).
    """
    kernel: Literal["linear", "rbf"] = "linear"
    huber: fields.Positive = 1e-3
    """Of the linear kernel."""
    bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Of RBF kernels, batches' included: multiples of the median distance."""
    width: fields.Positive | None = None
    """One fixed width of the RBF kernel in their place, with compare: image (the paper: 100)."""


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
    level_mapping: Literal["same", "matched"] = "same"
    """The noise level of a step below full size; matched: `sigmas` hold at full size, and
    sigma / alpha of a smaller step is divided by the reduction (RMD, arXiv 2603.06136).
    """
    renoise: Literal["fresh", "predicted"] = "fresh"
    """The noise of later steps; predicted: the one that the step before has seen, with fresh noise
    in what its size cannot hold (RMD).
    """
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
        self._options_apply()
        return self

    def _options_apply(self) -> None:
        """ValueError for an option that would be without effect."""
        mmd = self.mmd
        if mmd.features == "fake" and (mmd.compare == "batch" or not mmd.weight):
            raise ValueError(
                "mmd.features = fake: batches are compared in the teacher's features; expected "
                "mmd.compare = image and mmd.weight above 0, or mmd.features = teacher"
            )
        if mmd.features == "fake" and not (self.dmd.weight or self.gan.weight):
            raise ValueError(
                "mmd.features = fake: without DMD and GAN there is no fake network; set dmd.weight "
                "above 0, or mmd.features to teacher"
            )
        if mmd.width is not None and (mmd.compare == "batch" or mmd.kernel == "linear"):
            raise ValueError(
                f"mmd.width = {mmd.width}: expected null, or mmd.compare = image and mmd.kernel = "
                "rbf"
            )
        if self.renoise == "predicted" and not self.backward_simulation:
            raise ValueError(
                "renoise = predicted: inputs made from teacher images have no predicted noise; "
                "set backward_simulation to true or renoise to fresh"
            )
