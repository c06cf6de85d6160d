"""Settings of Sig-DEG: every key below `method` with `kind: sigdeg`, its range and its default."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from models.common import config as fields
from models.common.config import Count, Flag, Fraction, Nonnegative, Order, Section


class Window(Section):
    """Coarse steps per training window."""

    start: Count = 10
    """Coarse steps per training window at first; 1 = teacher forcing."""
    grow_until: Fraction = 0.5
    """Fraction of the steps after which windows are full rollouts."""


class Loss(Section):
    """Weights of (8), (9) and (17) in models/methods/sigdeg/method.py; 0 switches a term off."""

    weighting: Literal["marginal", "uniform", "final"] = "marginal"
    """Of the path error: by the variance of the state, none, or the last state only."""
    power: Annotated[float, Field(strict=True, gt=0, le=4)] = 2.0
    """Exponent of the path error."""
    path: Nonnegative = 0.1
    """Weight of the path error."""
    mmd: Nonnegative = 1.0
    """Weight of the distribution term on rolled-out samples."""
    mmd_target: Literal["auto", "teacher", "data"] = "auto"
    """What to compare with; auto: the training split's images if the teacher is unconditional
    and makes images of their shape.
    """
    mmd_bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Multiples of the median distance."""
    features: Nonnegative = 0.0
    """Weight of the teacher-feature term."""
    score: Nonnegative = 0.0
    """Weight of the energy score, whose optimum is the teacher's law; gives the network an input
    of standard normals and costs two rollouts a batch.
    """
    score_beta: Annotated[float, Field(strict=True, gt=0, lt=2)] = 1.0
    """Exponent of the energy score, above 0, below 2."""
    score_noise: Literal["all", "inner"] = "all"
    """Steps whose network gets these normals; inner: all but the last, for images without speckle
    long before the law is learnt.
    """
    score_patches: Annotated[
        tuple[fields.Natural, ...], Field(min_length=1), AfterValidator(fields.distinct)
    ] = (0,)
    """Edge lengths of the patches that the energy score compares; 0 = the whole state."""


class Scales(Section):
    """The first steps at smaller sizes (models/methods/sigdeg/scales.py)."""

    pairs: tuple[tuple[fields.PositiveFraction, Count], ...] = ()
    """Noise level of flow matching and size: steps that start at this level or below it have this
    size, such as [[1.0, 8], [0.6, 16]]; none = the full size throughout.
    """
    limit: fields.Positive = 2.0
    """How many times its full-size answer's error the teacher's error may be at a small size."""
    samples: Annotated[int, Field(strict=True, ge=8)] = 256
    """Of the teacher's validation images, at most, that these errors are measured on."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        sigmas, sizes = [pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs]
        if sigmas and sigmas[0] != 1.0:
            raise ValueError(f"pairs: first sigma is {sigmas[0]}; expected 1.0, pure noise")
        if any(b >= a for a, b in pairwise(sigmas)):
            raise ValueError(f"pairs: sigmas {sigmas}; expected strictly decreasing")
        if any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"pairs: sizes {sizes}; expected strictly increasing")
        return self


class SigDEGConfig(Section):
    """Choices of the method; equations: models/methods/sigdeg/method.py."""

    on_cached_grid: ClassVar[bool] = True  # no nfe above trajectories.intervals

    kind: Literal["sigdeg"] = "sigdeg"
    nfe: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(fields.distinct)] = (
        10,
        5,
    )
    """Network calls per image or series; one student serves all of these."""
    order: Order = 2
    """Of the exponential integrator."""
    look_ahead: Fraction = 0.25
    """How far along the step, 0 to 1, the network is asked."""
    predict_order: Order = 2
    """Of the extrapolation to that place."""
    calibrate: Flag = True
    """Choose look-ahead and gains of every schedule by KID on training images, before training."""
    memory: Flag = False
    """Give the network its previous output as an input."""
    conditioning_limit: fields.Positive | None = 10.0
    """Bound on how far an output error is amplified at high noise; null = none."""
    window: Window = Window()
    loss: Loss = Loss()
    trainable: Literal["full", "lora", "input"] = "full"
    """input: the new input channels only."""
    lora_rank: fields.Rank = 16
    scales: Scales = Scales()
    inputs: Literal["signature", "width", "none"] = "signature"
    """What the network is given beside the state: the signature and the width of the step; the
    width alone, to see what the signature is worth; or none, for a network that any pipeline with
    a `SigDEGScheduler` takes.
    """

    @model_validator(mode="after")
    def _inputs_agree(self) -> Self:
        if self.inputs == "none" and self.memory:
            raise ValueError("inputs none: the previous output is an input; set memory to false")
        if self.inputs == "none" and self.trainable == "input":
            raise ValueError("trainable input: inputs none adds no channels; use full or lora")
        if self.inputs == "none" and self.loss.score:
            raise ValueError(
                "inputs none: the energy score needs an input of its own; set "
                "loss.score to 0, or inputs to signature"
            )
        return self

    @model_validator(mode="after")
    def _whole_rollouts(self) -> Self:
        """A teacher's state in the middle knows the high frequencies' noise so far, which a student
        draws without knowing it.
        """
        short = self.window.start < max(self.nfe) and self.window.grow_until > 0
        if self.scales.pairs and short:
            raise ValueError(
                f"window.start = {self.window.start}: scale-wise students train on whole rollouts; "
                f"set window.start to {max(self.nfe)}, or window.grow_until to 0"
            )
        return self
