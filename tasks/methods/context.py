"""From the params and the earlier stages' results to a method: its context, its tools, its batches'
images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.base import DistillationMethod, MethodContext
from models.methods.registry import method_class
from models.teachers.base import Denoiser
from tasks.config.schema import Params
from tasks.data.batches import TrainingStates
from tasks.data.dataset import has_data, load_split
from tasks.data.reference import to_bytes, training_sample
from tasks.data.shards import ShardSet
from tasks.data.trajectories import cached_spec, guidance_of
from tasks.evaluation.extractor import extractor_of
from tasks.evaluation.validation import ValidationKID
from tasks.utils.progress import progress

if TYPE_CHECKING:
    from models.evaluation.features import FeatureExtractor


TEACHER_IMAGES = 2000  # in the place of a training split


@dataclass(frozen=True)
class ProjectTools:
    """A project's data as :class:`models.methods.base.Tools`."""

    params: Params
    root: Path
    teacher: Denoiser
    shards: ShardSet

    def training_images(self) -> np.ndarray:
        if has_data(self.root):
            return load_split(self.root, "train")[0]
        return to_bytes(training_sample(self.root, self.teacher, TEACHER_IMAGES))

    def teacher_states(self, count: int) -> Tensor:
        states = self.shards.array("validation", "Y")[: min(count, self.shards.rows("validation"))]
        return torch.from_numpy(np.asarray(states[:, -1], dtype=np.float32))

    def validation(self) -> ValidationKID:
        return ValidationKID(self.params, self.root, self.teacher)

    def extractor(self) -> FeatureExtractor:
        return extractor_of(self.params, self.root)

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return progress(what, total)


def method_of(params: Params) -> type[DistillationMethod]:
    """The class of the method that `method.kind` names."""
    found: type[DistillationMethod] = method_class(params.method.kind)
    return found


def make_context(
    params: Params,
    root: Path,
    teacher: Denoiser,
    shards: ShardSet,
    diagnostics: Mapping[str, Any] | None = None,
) -> MethodContext:
    """What the method is made from. ``diagnostics``: what its ``prepare`` found. From here on the
    teacher's conditions have the weight of guidance, where its network or the student takes one.
    """
    guidance = guidance_of(params.trajectories)
    teacher.embed_guidance(guidance)
    return MethodContext(
        teacher=teacher,
        config=params.method,
        spec=cached_spec(params.trajectories, teacher, shards),
        guidance=guidance,
        total_steps=params.student.steps,
        seed=params.student.seed,
        gradient_checkpointing=params.student.gradient_checkpointing,
        diagnostics=diagnostics or {},
        tools=ProjectTools(params, root, teacher, shards),
    )


def real_states(
    method: type[DistillationMethod], config: Any, root: Path, teacher: Denoiser
) -> TrainingStates | None:
    """The training split, where the method's loss compares with real data; None where it takes
    the teacher's.

    Raises InputError if the target ``data`` was asked for and cannot be had.
    """
    target, key = method.image_target(config)
    if target == "teacher":
        return None
    if not has_data(root):
        if target == "auto":
            return None
        raise InputError(f"{key} = data: dataset.kind = none has no images; use teacher or auto")
    states = TrainingStates(root, teacher)
    shape, latent, classes = states.stored.shape[1:], teacher.codec.latent, teacher.num_classes
    if not latent and classes is None and shape == tuple(teacher.shape):
        return states
    if target == "auto":
        return None
    kind = "latent" if latent else "conditional" if classes is not None else "other-sized"
    raise InputError(
        f"{key} = data: {states.kind.name} {shape} cannot stand beside those of this {kind} "
        f"teacher, {teacher.shape}; use teacher or auto"
    )
