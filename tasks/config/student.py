"""The section `student`: training of the student, whatever the method."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.common import config as common
from models.common.config import Count, Flag, Natural, Precision, Section, Seed, Workers
from tasks.config.types import MetricName


class Student(Section):
    steps: Natural = 60
    batch_size: Count = 32
    accumulate: Count = 1
    """Batches per optimizer step."""
    learning_rate: common.LearningRate = 1e-5
    warmup: Natural = 20
    """Steps in which the rate rises to learning_rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: common.Nonnegative = 0.0
    ema: common.Decay = 0.99
    """Decay of the moving average of the weights."""
    clip: common.Positive = 1.0
    """Bound on the norm of the gradient."""
    precision: Precision = "float32"
    gradient_checkpointing: Flag = False
    workers: Workers = 0
    """Ray Train workers; 0 = in this process."""
    sharding: Literal["none", "full"] = "none"
    """full: each worker holds a part of all networks, not a copy, and a step's `accumulate` batches
    are shared out among the workers.
    """
    elastic: Flag = False
    """With sharding = full: go on with the workers that the Ray cluster has room for. false: wait
    for room for all.
    """
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit: moments of 8 bits, a quarter of the memory; needs the package torchao."""
    validate_every: Count = 20
    """Steps between validations; the best weights are kept."""
    validation_samples: Annotated[int, Field(strict=True, ge=2)] = 500
    """Images or series per validation."""
    criterion: MetricName = "kid"
    """The metric that decides which weights are kept, against the training split."""
    checkpoint_every: Count = 20
    keep_checkpoints: Count = 2
    max_failures: Natural = 2
    """Restarts of failed workers."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _sharding_agrees(self) -> Self:
        if self.sharding == "none" and self.elastic:
            raise ValueError(
                "elastic = true: without sharding a step's batch is as large as there are workers, "
                "so that fewer would train another student; expected sharding = full with it"
            )
        if self.sharding == "none":
            return self
        if self.accumulate % max(1, self.workers):
            raise ValueError(
                f"accumulate = {self.accumulate}: sharding = full shares the batches of a step out "
                f"among workers = {self.workers}; expected a multiple of it"
            )
        if self.precision == "float16":
            raise ValueError(
                "precision = float16: its scaling of the loss is not tried with sharding = full; "
                "expected bfloat16 or float32"
            )
        if self.optimizer != "adamw":
            raise ValueError(
                f"optimizer = {self.optimizer}: its moments cannot be divided among other numbers "
                "of workers; expected adamw with sharding = full"
            )
        return self
