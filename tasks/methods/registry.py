"""What the student stage and the evaluation need of each distillation method: one table, kind ->
recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.common.errors import InputError
from models.methods.sigdeg.method import SigDEG, SigDEGConfig, Tuning, build_pipeline
from models.methods.swd.build import build_swd_pipeline
from models.methods.swd.method import SwD
from models.teachers.base import Teacher
from models.training.loop import Batches
from tasks.config.schema import Params, SigDeg
from tasks.config.swd import Swd
from tasks.data.batches import ImageBatches, PathBatches, Rows
from tasks.data.dataset import load_split
from tasks.data.shards import ShardSet
from tasks.data.trajectories import cached_spec
from tasks.methods.sigdeg_calibration import calibrate
from tasks.methods.swd_gate import measure, swd_config

Facts = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a method comes from. ``facts``: what the recipe's ``measure`` found, as JSON."""

    params: Params
    teacher: Teacher
    shards: ShardSet
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """``measure(source, root)`` runs once, before any training; the others are deterministic in
    their arguments.

    ``method``: for the training loop, with ``pipeline``, ``teacher`` and ``config.nfe``;
    ``pipeline``: untrained; ``batches(source, device, rank, world)``; ``rates``: learning rates of
    players other than the student.
    """

    method: Callable[[Source], Any]
    pipeline: Callable[[Source], Any]
    batches: Callable[[Source, torch.device, int, int], Batches]
    measure: Callable[[Source, Path], Facts] = lambda source, root: {}
    rates: Callable[[Params], dict[str, float]] = lambda params: {}


def method_config(params: Params, facts: Facts | None = None) -> SigDEGConfig:
    """Sig-DEG's settings from params.yaml, and what calibration found."""
    method = params.method
    assert isinstance(method, SigDeg)
    return SigDEGConfig(
        nfe=tuple(method.nfe),
        order=method.order,
        look_ahead=method.look_ahead,
        predict_order=method.predict_order,
        tuned=tuple(
            (int(nfe), Tuning(**numbers)) for nfe, numbers in (facts or {}).get("tuned", {}).items()
        ),
        memory=method.memory,
        conditioning_limit=method.conditioning_limit,
        window_start=method.window.start,
        window_until=method.window.grow_until,
        weighting=method.loss.weighting,
        power=method.loss.power,
        path=method.loss.path,
        mmd=method.loss.mmd,
        mmd_bandwidths=tuple(method.loss.mmd_bandwidths),
        features=method.loss.features,
        trainable=method.trainable,
        lora_rank=method.lora_rank,
        gradient_checkpointing=params.student.gradient_checkpointing,
    )


def _sigdeg(source: Source) -> SigDEG:
    spec = cached_spec(source.params.trajectories, source.teacher, source.shards)
    config = method_config(source.params, source.facts)
    return SigDEG(source.teacher, spec, config, source.params.student.steps)


def _sigdeg_pipeline(source: Source) -> Any:
    spec = cached_spec(source.params.trajectories, source.teacher, source.shards)
    return build_pipeline(source.teacher, spec, method_config(source.params, source.facts))[0]


def _calibrate(source: Source, root: Path) -> Facts:
    _real_images(source)  # a mistake there should show before the long work
    method = source.params.method
    if not (isinstance(method, SigDeg) and method.calibrate):
        return {}
    spec = cached_spec(source.params.trajectories, source.teacher, source.shards)
    return calibrate(source.params, root, source.teacher, spec, method_config(source.params))


def _real_images(source: Source) -> np.ndarray | None:
    """The training split, where the distribution term compares with real images; None where it
    takes the teacher's.

    Raises InputError if the target ``data`` was asked for and cannot be had.
    """
    method, teacher = source.params.method, source.teacher
    if isinstance(method, SigDeg):
        weight, target, key = method.loss.mmd, method.loss.mmd_target, "method.loss.mmd_target"
    else:
        weight, target, key = method.mmd.weight, method.mmd.target, "method.mmd.target"
    if not weight or target == "teacher":
        return None
    images = load_split(source.shards.folder.parents[1], "train")[0]
    if teacher.vae is None and teacher.num_classes is None and images.shape[1:] == teacher.shape:
        return images
    if target == "auto":
        return None
    kind = (
        "latent"
        if teacher.vae is not None
        else "conditional"
        if teacher.num_classes is not None
        else "other-sized"
    )
    raise InputError(
        f"{key} = data: images {images.shape[1:]} cannot stand beside those of this {kind} "
        "teacher, "
        f"{teacher.shape}; use teacher or auto"
    )


def _batches(kind: type[Rows]) -> Callable[[Source, torch.device, int, int], Batches]:
    def make(source: Source, device: torch.device, rank: int, world: int) -> Batches:
        student = source.params.student
        batches = kind(
            source.shards, student.batch_size, student.accumulate, student.seed, device, rank, world
        )
        batches.images = _real_images(source)
        return batches

    return make


def _measure_scales(source: Source, root: Path) -> Facts:
    _real_images(source)
    return measure(source.params, root, source.teacher, source.shards)


def _swd_rates(params: Params) -> dict[str, float]:
    assert isinstance(params.method, Swd)
    given = params.method.rates.model_dump()
    return {player: rate for player, rate in given.items() if rate is not None}


RECIPES = {
    "sigdeg": Recipe(_sigdeg, _sigdeg_pipeline, _batches(PathBatches), _calibrate),
    "swd": Recipe(
        lambda source: SwD(source.teacher, swd_config(source.params, source.facts)),
        lambda source: build_swd_pipeline(source.teacher, swd_config(source.params, source.facts)),
        _batches(ImageBatches),
        _measure_scales,
        _swd_rates,
    ),
}
