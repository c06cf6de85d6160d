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
from models.methods.sigdeg import config as sigdeg_settings
from models.methods.sigdeg.method import SamplerGains, SigDEG, SigDEGConfig, build_pipeline
from models.methods.swd import config as swd_settings
from models.methods.swd.build import build_swd_pipeline
from models.methods.swd.method import SwD
from models.teachers.base import Denoiser
from models.training.loop import Batches
from tasks.config.schema import Params
from tasks.data.batches import ImageBatches, PathBatches, Rows
from tasks.data.dataset import load_split
from tasks.data.shards import ShardSet
from tasks.data.trajectories import cached_spec
from tasks.methods.sigdeg_calibration import calibrate
from tasks.methods.swd_gate import prepare, swd_config

Diagnostics = dict[str, Any]


@dataclass(frozen=True)
class MethodContext:
    """Where a method comes from. ``diagnostics``: what the recipe's ``prepare`` found, as JSON."""

    params: Params
    teacher: Denoiser
    shards: ShardSet
    diagnostics: Diagnostics = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """``prepare(context, root)`` runs once, before any training; the others are deterministic in
    their arguments.

    ``method``: for the training loop, with ``pipeline``, ``teacher`` and ``config.nfe``;
    ``pipeline``: untrained; ``batches(context, device, rank, world)``; ``rates``: learning rates of
    networks other than the student.
    """

    method: Callable[[MethodContext], Any]
    pipeline: Callable[[MethodContext], Any]
    batches: Callable[[MethodContext, torch.device, int, int], Batches]
    prepare: Callable[[MethodContext, Path], Diagnostics] = lambda context, root: {}
    rates: Callable[[Params], dict[str, float]] = lambda params: {}


def method_config(params: Params, diagnostics: Diagnostics | None = None) -> SigDEGConfig:
    """Sig-DEG's settings from params.yaml, and what calibration found."""
    method = params.method
    assert isinstance(method, sigdeg_settings.SigDEGConfig)
    return SigDEGConfig(
        nfe=tuple(method.nfe),
        order=method.order,
        look_ahead=method.look_ahead,
        predict_order=method.predict_order,
        gains_by_nfe=tuple(
            (int(nfe), SamplerGains(**numbers))
            for nfe, numbers in (diagnostics or {}).get("gains_by_nfe", {}).items()
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


def _sigdeg(context: MethodContext) -> SigDEG:
    spec = cached_spec(context.params.trajectories, context.teacher, context.shards)
    config = method_config(context.params, context.diagnostics)
    return SigDEG(context.teacher, spec, config, context.params.student.steps)


def _sigdeg_pipeline(context: MethodContext) -> Any:
    spec = cached_spec(context.params.trajectories, context.teacher, context.shards)
    return build_pipeline(
        context.teacher, spec, method_config(context.params, context.diagnostics)
    )[0]


def _calibrate(context: MethodContext, root: Path) -> Diagnostics:
    _real_images(context)  # a mistake there should show before the long work
    method = context.params.method
    if not (isinstance(method, sigdeg_settings.SigDEGConfig) and method.calibrate):
        return {}
    spec = cached_spec(context.params.trajectories, context.teacher, context.shards)
    return calibrate(context.params, root, context.teacher, spec, method_config(context.params))


def _real_images(context: MethodContext) -> np.ndarray | None:
    """The training split, where the distribution term compares with real images; None where it
    takes the teacher's.

    Raises InputError if the target ``data`` was asked for and cannot be had.
    """
    method, teacher = context.params.method, context.teacher
    if isinstance(method, sigdeg_settings.SigDEGConfig):
        weight, target, key = method.loss.mmd, method.loss.mmd_target, "method.loss.mmd_target"
    else:
        weight, target, key = method.mmd.weight, method.mmd.target, "method.mmd.target"
    if not weight or target == "teacher":
        return None
    images = load_split(context.shards.folder.parents[1], "train")[0]
    if not teacher.codec.latent and not teacher.conditional and images.shape[1:] == teacher.shape:
        return images
    if target == "auto":
        return None
    kind = (
        "latent"
        if teacher.codec.latent
        else "conditional"
        if teacher.conditional
        else "other-sized"
    )
    raise InputError(
        f"{key} = data: images {images.shape[1:]} cannot stand beside those of this {kind} "
        "teacher, "
        f"{teacher.shape}; use teacher or auto"
    )


def _batches(kind: type[Rows]) -> Callable[[MethodContext, torch.device, int, int], Batches]:
    def make(context: MethodContext, device: torch.device, rank: int, world: int) -> Batches:
        student = context.params.student
        batches = kind(
            context.shards,
            student.batch_size,
            student.accumulate,
            student.seed,
            device,
            rank,
            world,
        )
        batches.images = _real_images(context)
        batches.encode = context.teacher.encode_condition
        return batches

    return make


def _measure_scales(context: MethodContext, root: Path) -> Diagnostics:
    _real_images(context)
    return prepare(context.params, root, context.teacher, context.shards)


def _swd_rates(params: Params) -> dict[str, float]:
    assert isinstance(params.method, swd_settings.SwDConfig)
    given = params.method.rates.model_dump()
    return {role: rate for role, rate in given.items() if rate is not None}


RECIPES = {
    "sigdeg": Recipe(_sigdeg, _sigdeg_pipeline, _batches(PathBatches), _calibrate),
    "swd": Recipe(
        lambda context: SwD(context.teacher, swd_config(context.params, context.diagnostics)),
        lambda context: build_swd_pipeline(
            context.teacher, swd_config(context.params, context.diagnostics)
        ),
        _batches(ImageBatches),
        _measure_scales,
        _swd_rates,
    ),
}
