"""What a distillation method is: what it is made from, and what training, selection and export ask
of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.common.config import Section
from models.common.errors import InputError
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance

if TYPE_CHECKING:
    from models.evaluation.features import FeatureExtractor
    from models.methods.costs import Costs

Losses = tuple[Tensor, dict[str, Tensor]]
Needs = Literal["paths", "endpoints", "data"]


class PathBatch(NamedTuple):
    """Cached teacher paths: ``Y`` (n, N + 1, C, H, W) states, ``xi`` (n, N, m + 1, C, H, W)
    features, ``condition`` or None, ``step``: of the optimizer; ``real``: clean training images
    (n, C, H, W) in [-1, 1] for a loss that compares with them, or None.
    """

    Y: Tensor
    xi: Tensor
    condition: Condition | None
    step: int
    real: Tensor | None = None


class ImageBatch(NamedTuple):
    """Clean states ``x0`` (n, C, H, W) of the teacher's state space, made by the teacher (needs =
    endpoints) or encoded from training images (needs = data); the rest as in :class:`PathBatch`.
    """

    x0: Tensor
    condition: Condition | None
    step: int
    real: Tensor | None = None


class Validation(Protocol):
    """Scores samplers by KID against training images; equal noise for equal numbers of steps.

    ``count``: samples of a full score.
    """

    count: int

    def features(self, sample: Callable[..., Tensor], nfe: int, low: int, high: int) -> Tensor:
        """Features (high - low, d) of samples low to high - 1 of ``sample(noise, condition,
        generator)``.
        """
        ...

    def kid_of(self, features: Tensor) -> float:
        """KID of features (n, d), n >= 2."""
        ...


class Tools(Protocol):
    """What :meth:`DistillationMethod.prepare` may use of the project's data."""

    def training_images(self) -> np.ndarray:
        """The training split, uint8 (n, C, H, W)."""
        ...

    def teacher_states(self, count: int) -> Tensor:
        """At most ``count`` clean states (n, C, H, W) of validation paths, float32, on the CPU."""
        ...

    def validation(self) -> Validation: ...

    def extractor(self) -> FeatureExtractor: ...

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar: yields the function that advances it."""
        ...


@dataclass(frozen=True)
class MethodContext:
    """What a method is made from.

    ``config``: its own settings; ``spec``: of the cached paths; ``guidance``: of the teacher in
    them, a range where every path has a weight of its own; ``total_steps``: optimizer steps to
    come; ``diagnostics``: what ``prepare`` found, as JSON; ``tools``: None where nothing is to be
    prepared.
    """

    teacher: Denoiser
    config: Any
    spec: PathSpec | None = None
    guidance: Guidance = 1.0
    total_steps: int = 1
    seed: int = 0
    gradient_checkpointing: bool = False
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    tools: Tools | None = None


class Trainable(ABC):
    """What :func:`models.training.loop.train` asks of a distillation method and of the teacher's
    own training.

    ``networks``: networks with an optimizer each, by role; ``ema``: roles that keep an average.
    """

    networks: Mapping[str, nn.Module]
    ema: tuple[str, ...] = ("student",)

    def updates(self, step: int) -> Sequence[str]:
        """Roles to update at this step, in order; a role may come several times."""
        return tuple(self.networks)

    @abstractmethod
    def loss(self, role: str, batch: Any, generator: torch.Generator) -> Losses:
        """Scalar loss of one role on one batch and the terms worth logging; pure: no backward, no
        optimizer.
        """

    def after_step(self, step: int) -> None:
        """Called after optimizer step ``step`` (1 is the first); a method with state of its own
        changes it here, and only as a function of ``step`` and its networks.
        """
        return None


class DistillationMethod(Trainable):
    """A way to make a student of few steps from a teacher.

    ``name`` is ``method.kind`` in the params, ``Config`` the class of its settings, which have
    ``nfe``. ``needs`` says what a batch is: cached teacher paths (:class:`PathBatch`), their clean
    ends, or training images (:class:`ImageBatch`). A subclass sets ``networks``, with the role
    "student", in its constructor, and defines :meth:`untrained` and :meth:`loss`.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Section]]
    needs: ClassVar[Needs]
    sharded: bool = False
    """Whether the networks are divided among workers, who make the same calls of them."""

    def __init__(self, context: MethodContext):
        self.context, self.teacher, self.config = context, context.teacher, context.config
        self.pipeline = self.untrained(context)
        self.pipeline.unet.to(self.teacher.device)
        self.networks = {"student": self.pipeline.unet}

    @classmethod
    def costs(cls, context: MethodContext, real: bool = False) -> Costs | None:
        """What the method will ask of its networks, for `fewstep estimate`; None if it cannot tell.

        ``context.teacher`` has no weights here; ``real``: whether batches have training images.
        """
        return None

    @classmethod
    def prepare(cls, context: MethodContext) -> dict[str, Any]:
        """What has to be chosen or measured once before training, as JSON: ``diagnostics`` of
        every later context.
        """
        return {}

    @classmethod
    @abstractmethod
    def untrained(cls, context: MethodContext) -> Any:
        """The student before training: a :class:`models.methods.student_pipeline.StudentPipeline`
        whose ``unet`` is a copy of the teacher's network, to be trained.
        """

    @classmethod
    def image_target(cls, config: Any) -> tuple[str, str]:
        """(target, key in the params) of a loss that compares with images: "data" (training
        images), "teacher", or "auto" (data where they have the shape of the teacher's states).
        """
        return "teacher", "method"

    @classmethod
    def check_sharding(cls, config: Any) -> None:
        """InputError unless the losses call the networks alike, the same ones in the same order,
        for all micro-batches of a step, whatever was drawn and whatever a batch holds: a call of a
        sharded network is one of all workers. A method for which that holds says so here.
        """
        raise InputError(
            f"student.sharding = full: method.kind = {cls.name} does not say that its losses call "
            "the networks alike for all micro-batches; override check_sharding, or use none"
        )

    @property
    def nfe(self) -> tuple[int, ...]:
        """Numbers of steps that the student is trained for."""
        return tuple(self.config.nfe)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates of roles that differ from ``student.learning_rate``."""
        return {}

    def checkpointed(self, call: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """``call(*inputs)``, where the context asks for it with activations that are computed again
        in the backward pass.
        """
        if self.context.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(call, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return call(*inputs)

    def validation_figures(self, nfe: int, paths: PathBatch) -> dict[str, float]:
        """More figures for the history, from validation paths; asked where ``needs`` is paths."""
        return {}

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        condition: Condition | None = None,
        *,
        xi: Any = None,
        nfe: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Clean states (n, C, H, W) from start noise (n, C, H, W) with the live weights."""
        x0: Tensor = self.pipeline.rollout(noise, xi, condition, nfe, generator)[0]
        return x0


def without_dropout(networks: Mapping[str, nn.Module]) -> None:
    """Switch dropout off: a student answers as its teacher does, in training too."""
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
