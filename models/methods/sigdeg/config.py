"""Settings of Sig-DEG: every key below `method` with `kind: sigdeg`, its range and its default."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from models.common import config as fields
from models.common.config import Count, Flag, Fraction, Nonnegative, Order, Section


class Window(Section):
    """Coarse steps per training window: `start` (1 = teacher forcing), full rollouts after the
    fraction `grow_until` of all training steps.
    """

    start: Count = 10
    grow_until: Fraction = 0.5


class Loss(Section):
    """Weights of the loss terms (8) and (9) of models/methods/sigdeg/method.py; 0 switches a term
    off.

    `weighting` of the path error: by the state's own variance, none, or the last state only;
    `power`: its exponent. `mmd_bandwidths`: multiples of the median distance. `mmd_target` auto:
    the training split's images if the teacher is unconditional and makes images of their shape.
    """

    weighting: Literal["marginal", "uniform", "final"] = "marginal"
    power: Annotated[float, Field(strict=True, gt=0, le=4)] = 2.0
    path: Nonnegative = 0.1
    mmd: Nonnegative = 1.0
    mmd_target: Literal["auto", "teacher", "data"] = "auto"
    mmd_bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    features: Nonnegative = 0.0


class SigDEGConfig(Section):
    """`nfe`: numbers of network calls that one student serves; `order`: of the exponential
    integrator.

    `look_ahead`: how far along the step, 0 to 1, the network is asked; `predict_order`: of the
    extrapolation to that place. `calibrate`: choose both for every schedule by KID on training
    images before training. `memory`: the previous output is an input. `conditioning_limit`: bound
    on how far an output error is amplified at high noise, None for none. `trainable` input: the
    new input channels only. `inputs`: what the network is given beside the state: the signature and
    the step's width, or none, for a network of the teacher's own shape that any pipeline with a
    `SigDEGScheduler` takes.
    """

    kind: Literal["sigdeg"] = "sigdeg"
    nfe: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(fields.distinct)] = (
        10,
        5,
    )
    order: Order = 2
    look_ahead: Fraction = 0.25
    predict_order: Order = 2
    calibrate: Flag = True
    memory: Flag = False
    conditioning_limit: fields.Positive | None = 10.0
    window: Window = Window()
    loss: Loss = Loss()
    trainable: Literal["full", "lora", "input"] = "full"
    lora_rank: fields.Rank = 16
    inputs: Literal["signature", "none"] = "signature"

    @model_validator(mode="after")
    def _inputs_agree(self) -> Self:
        if self.inputs == "none" and self.memory:
            raise ValueError("inputs none: the previous output is an input; set memory to false")
        if self.inputs == "none" and self.trainable == "input":
            raise ValueError("trainable input: inputs none adds no channels; use full or lora")
        return self
