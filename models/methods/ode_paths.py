"""What methods share that follow the teacher's deterministic paths, the chain with eta = 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.common.errors import InputError
from models.methods.base import MethodContext
from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.student_network import student_network
from models.sampling.grids import subgrid
from models.sampling.trajectories import PathSpec

Schedule = Sequence[Sequence[float]]


def ode_spec(context: MethodContext) -> PathSpec:
    """The spec of the cached paths; InputError where noise enters on their way."""
    kind = context.config.kind
    if context.spec is None:
        raise ValueError(f"{kind} follows cached paths: expected a context with their spec")
    if context.spec.chain.eta != 0.0:
        raise InputError(
            f"trajectories.eta = {context.spec.chain.eta}: method.kind = {kind} follows the "
            "teacher's deterministic paths; expected 0.0"
        )
    return context.spec


def grid_levels(spec: PathSpec, nfe: int) -> list[tuple[float, float, float]]:
    """(t, alpha, sigma) where the ``nfe`` steps of the cached grid begin, from noise to data."""
    levels = spec.chain.levels
    starts = subgrid(spec.grid, nfe)[:-1]
    return [(float(levels.t[k]), float(levels.alpha[k]), float(levels.sigma[k])) for k in starts]


def multistep_student(
    context: MethodContext, levels: Mapping[int, Schedule], title: str, **options: Any
) -> MultistepPipeline:
    """The untrained student: a copy of the teacher's network, to be trained, asked at ``levels`` by
    number of steps. ``options``: more of :class:`MultistepPipeline`.
    """
    teacher, config = context.teacher, context.config
    channels = teacher.shape[0] + int(options.get("steps_input", False))
    return MultistepPipeline(
        unet=student_network(teacher, channels, config.trainable, config.lora_rank),
        levels={str(n): [list(level) for level in own] for n, own in levels.items()},
        title=title,
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        clip=teacher.clip,
        num_classes=teacher.num_classes,
        scaling=teacher.codec.scaling,
        vae=teacher.codec.vae,
        **options,
    )
