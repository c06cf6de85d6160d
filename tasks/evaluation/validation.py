"""Rolled-out quality on held-out noise against real images of the training split, or the teacher's
own where there are none: what students are chosen by.

Path error alone does not track quality. The evaluation's holdout split is never touched here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.common.random import generator_for
from models.common.shapes import rows_at_once
from models.evaluation.base import Metric, Samples
from models.evaluation.features import extract
from models.evaluation.registry import criterion_class, metric_class
from models.evaluation.series.base import SeriesMetric
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from tasks.config.schema import Params
from tasks.data.dataset import load_manifest
from tasks.data.reference import training_sample
from tasks.evaluation.extractor import extractor_of

REFERENCE = 4000
BATCH, REAL_BATCH = 125, 250
Sample = Callable[[Tensor, Condition | None, torch.Generator], Tensor]


def check_metrics(params: Params, root: Path) -> None:
    """InputError, before any long work, for metrics that cannot measure the series there are."""
    manifest = load_manifest(root)
    for name in (*params.evaluation.metrics, params.student.criterion):
        metric = metric_class(name)
        if issubclass(metric, SeriesMetric):
            metric.check_channels(int(manifest["shape"][0]))


class ValidationScore:
    """Scores samplers of a teacher's states by a metric; the same noise for every sampler with the
    same number of steps.

    ``criterion``: the metric's name; ``count``: samples a score, ``student.validation_samples``.
    """

    def __init__(
        self, params: Params, root: Path, teacher: Denoiser, criterion: str | None = None
    ) -> None:
        self.count = params.student.validation_samples
        self.seed, self.teacher = params.student.seed, teacher
        metric = criterion_class(criterion or params.student.criterion, "student.criterion")
        series = params.dataset.data_kind == "series"
        self.extractor = None if series else extractor_of(params, root)
        real = training_sample(root, teacher, REFERENCE)
        self.metric: Metric = metric(self._seen(real, REAL_BATCH))

    def _seen(self, data: Tensor, batch_size: int = BATCH) -> Samples:
        """What the metric reads: images and their features, or series."""
        if self.extractor is None:
            return Samples(series=data)
        return Samples(data, extract(self.extractor, data, batch_size))

    def score(self, sample: Sample, nfe: int) -> float:
        """The metric of ``count`` samples; ``sample(noise, condition, generator)`` returns clean
        states (n, C, H, W).
        """
        images = self.images(sample, nfe, 0, self.count)
        return self.metric(self._seen(images)).value

    @torch.no_grad()
    def images(self, sample: Sample, nfe: int, low: int, high: int) -> Tensor:
        """Images (high - low, C, H, W), or series, of samples ``low`` to ``high`` - 1, whose noise
        depends on ``low``.
        """
        made, batch = [], rows_at_once(self.teacher.shape, BATCH)
        for first in range(low, high, batch):
            n, generator = min(batch, high - first), generator_for("cpu", self.seed, 13, nfe, first)
            noise = torch.randn((n, *self.teacher.shape), generator=generator).to(
                self.teacher.device
            )
            x0 = sample(noise, self.teacher.default_condition(n, first), generator)
            made.append(self.teacher.decode(x0).float().cpu())
        return torch.cat(made)


class ValidationKID(ValidationScore):
    """The same by KID, whatever the criterion: what a sampler is calibrated by before training.

    Series have no features: they are measured by their signatures' MMD, which is the same estimate
    with another kernel, and stand for features themselves.
    """

    def __init__(self, params: Params, root: Path, teacher: Denoiser) -> None:
        series = params.dataset.data_kind == "series"
        super().__init__(params, root, teacher, "sig_mmd" if series else "kid")

    def kid(self, sample: Sample, nfe: int) -> float:
        """KID of ``count`` samples."""
        return self.score(sample, nfe)

    def kid_of(self, features: Tensor) -> float:
        """KID of features (n, d), n >= 2."""
        if self.extractor is None:
            return self.metric(Samples(series=features)).value
        return self.metric(Samples(features=features)).value

    def features(self, sample: Sample, nfe: int, low: int, high: int) -> Tensor:
        """Features (high - low, d) of the samples number ``low`` to ``high`` - 1."""
        made = self.images(sample, nfe, low, high)
        return made if self.extractor is None else extract(self.extractor, made, BATCH)
