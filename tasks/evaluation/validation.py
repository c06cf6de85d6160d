"""Rolled-out KID on held-out noise against real images of the training split: what students are
chosen by.

Path error alone does not track quality. The evaluation's holdout split is never touched here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.common.random import generator_for
from models.evaluation.features import extract
from models.evaluation.metrics import kid
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from tasks.config.schema import Params
from tasks.data.dataset import load_split

REFERENCE = 4000
BATCH = 125
Sample = Callable[[Tensor, Condition | None, torch.Generator], Tensor]


class ValidationKID:
    """Scores samplers of a teacher's states by KID; the same noise for every sampler with the same
    number of steps.

    ``count``: samples a score, ``student.validation_samples``.
    """

    def __init__(self, params: Params, root: Path, teacher: Denoiser):
        from tasks.evaluation.extractor import extractor_of

        self.count = params.student.validation_samples
        self.seed, self.teacher = params.student.seed, teacher
        self.extractor = extractor_of(params, root)
        images, _ = load_split(root, "train")
        rows = np.sort(np.random.default_rng(0).permutation(len(images))[:REFERENCE])
        self.real = extract(self.extractor, torch.from_numpy(images[rows]).float() / 127.5 - 1)

    def kid(self, sample: Sample, nfe: int) -> float:
        """KID of ``count`` samples; ``sample(noise, condition, generator)`` returns clean states
        (n, C, H, W).
        """
        return self.kid_of(self.features(sample, nfe, 0, self.count))

    def kid_of(self, features: Tensor) -> float:
        """KID of features (n, d), n >= 2."""
        return float(kid(features, self.real))

    @torch.no_grad()
    def features(self, sample: Sample, nfe: int, low: int, high: int) -> Tensor:
        """Features (high - low, d) of the samples number ``low`` to ``high`` - 1, whose noise
        depends on ``low``.
        """
        features = []
        for first in range(low, high, BATCH):
            n, generator = min(BATCH, high - first), generator_for("cpu", self.seed, 13, nfe, first)
            noise = torch.randn((n, *self.teacher.shape), generator=generator).to(
                self.teacher.device
            )
            x0 = sample(noise, self.teacher.default_condition(n), generator)
            features.append(extract(self.extractor, self.teacher.decode(x0).float().cpu()))
        return torch.cat(features)
