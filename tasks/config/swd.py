"""The section `method` of params.yaml for `kind: swd`, scale-wise distillation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config import types as fields
from tasks.config.types import Count, Flag, Natural, Section, Size

Level = Annotated[float, Field(strict=True, gt=0, le=1)]
Levels = Annotated[tuple[Level, ...], Field(min_length=1)]


class PresetSchedule(Section):
    kind: Literal["preset"] = "preset"
    steps: Literal[4, 6] = 4
    sigmas: Levels | None = None


class AutoSchedule(Section):
    kind: Literal["auto"] = "auto"
    sigmas: Levels = (1.0, 0.8959, 0.7371, 0.6022)
    smallest: Size | None = None


class GivenSchedule(Section):
    kind: Literal["given"] = "given"
    pairs: Annotated[tuple[tuple[Level, Count], ...], Field(min_length=1)]


Schedule = Annotated[PresetSchedule | AutoSchedule | GivenSchedule, Field(discriminator="kind")]


class Dmd(Section):
    weight: fields.Nonnegative = 1.0
    gate: Literal["on", "off"] = "on"
    limit: fields.Positive = 3.0
    samples: Annotated[int, Field(strict=True, ge=8)] = 500
    steps: Count = 20


class Gan(Section):
    weight: fields.Nonnegative = 0.0
    features: fields.Nonnegative = 1e-2


class Mmd(Section):
    weight: fields.Nonnegative = 1.0
    compare: Literal["image", "batch"] = "batch"
    target: Literal["auto", "teacher", "data"] = "auto"
    levels: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.4
    kernel: Literal["linear", "rbf"] = "linear"
    huber: fields.Positive = 1e-3
    bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)


class Rates(Section):
    fake: fields.LearningRate | None = 7e-4
    discriminator: fields.LearningRate | None = None


class Swd(Section):
    """`nfe` is the schedule's length; the student section's own values suit this method when it is
    chosen.
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
    lora_rank: Annotated[int, Field(strict=True, ge=1, le=1024)] = 64

    companions: ClassVar[dict[str, dict[str, Any]]] = {
        "student": {
            "steps": 3000,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "warmup": 100,
            "ema": 0.999,
            "validate_every": 250,
            "validation_samples": 2000,
            "checkpoint_every": 250,
        }
    }

    @field_validator("schedule", mode="before")
    @classmethod
    def _preset_if_unsaid(cls, value: Any) -> Any:
        return {"kind": "preset", **value} if isinstance(value, dict) else value

    @property
    def nfe(self) -> tuple[int, ...]:
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
                "mmd.compare = image "
                "needs; set backward_simulation to false or mmd.compare to batch"
            )
        return self
