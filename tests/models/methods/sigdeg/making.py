"""Sig-DEG on tiny networks: methods, batches, trainings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.methods.base import PathBatch
from models.methods.sigdeg.method import SigDEG
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.made import sigdeg
from tests.models.tinypaths import batch_of, spec_of, teacher_of

GENERATOR_SEED = 4


def method_of(kind: str = "v_prediction", total: int = 10, **choices: Any) -> SigDEG:
    teacher = teacher_of(kind)
    choices = {"nfe": (4, 2), "conditioning_limit": None} | choices
    return sigdeg(teacher, spec_of(teacher), total, **choices)


def paths_of(method: SigDEG, n: int = 4, step: int = 0) -> PathBatch:
    return batch_of(method.teacher, spec_of(method.teacher), n, step)


def loss_of(method: SigDEG, batch: PathBatch) -> tuple[Tensor, dict[str, Tensor]]:
    return method.loss("student", batch, torch.Generator().manual_seed(GENERATOR_SEED))


def trained(method: SigDEG, batch: PathBatch, steps: int, rate: float) -> list[float]:
    """Losses of ``steps`` updates on one batch."""
    state = TrainState(method, LoopConfig(steps=steps, learning_rate=rate, schedule="constant"))
    reports = train(method, lambda step, micro, update: batch._replace(step=step), state)
    return [report.terms["student/loss"] for report in reports]
