"""The section `student`: training of the student, whatever the method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.common import config as common
from models.common.config import Count, Flag, Natural, Precision, Section, Seed, Workers


class Student(Section):
    steps: Natural = 60
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: common.LearningRate = 1e-5
    warmup: Natural = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: common.Nonnegative = 0.0
    ema: common.Decay = 0.99
    clip: common.Positive = 1.0
    precision: Precision = "float32"
    gradient_checkpointing: Flag = False
    workers: Workers = 0
    validate_every: Count = 20
    validation_samples: Annotated[int, Field(strict=True, ge=2)] = 1000
    checkpoint_every: Count = 20
    keep_checkpoints: Count = 2
    max_failures: Natural = 2
    seed: Seed = 0
