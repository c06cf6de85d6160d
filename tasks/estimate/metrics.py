"""How long the figures of an evaluation take: the metrics themselves, on random data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.evaluation.features import extract
from tasks.config.schema import Params
from tasks.estimate.blueprint import Blueprint
from tasks.estimate.data import Facts
from tasks.evaluation.evaluator import Evaluator
from tasks.evaluation.extractor import extractors_of
from tasks.evaluation.results import SamplerKey

ENTRIES = 3e7  # of data made for this; larger sets are timed on fewer of them


@dataclass(frozen=True)
class MetricTimes:
    """CPU seconds: of everything about the real set, of one sampler, of the criterion's features of
    one sample.
    """

    real: float
    sampler: float
    sample: float


def time_metrics(params: Params, root: Path, plan: Blueprint, facts: Facts | None) -> MetricTimes:
    """Raises InputError for metrics or extractors that cannot be used."""
    settings, shape = params.evaluation, plan.data_shape()
    real = facts.holdout if facts is not None else params.trajectories.validation - settings.samples
    entries = max(1, int(torch.Size(shape).numel()))
    share = min(1.0, ENTRIES / (entries * (real + settings.samples)))
    least = settings.neighbours + 2
    counts = [max(least, round(share * n)) for n in (real, settings.samples)]
    extractors = extractors_of(settings, root)
    images = [_random(n, shape) for n in counts]
    start = time.process_time()
    evaluator = Evaluator(
        extractors, images[0], settings, min(counts), params.dataset.data_kind, images[0]
    )
    bound = time.process_time()
    prompts = ("",) * counts[1] if plan.teacher.condition_kind == "prompts" else None
    evaluator.measure(SamplerKey("estimate"), images[1], prompts)
    measured = time.process_time()
    few = images[1][: min(64, counts[1])]
    start_features = time.process_time()
    if extractors:
        extract(extractors[0], few)
    each = (time.process_time() - start_features) / len(few)
    grown = [real / counts[0], settings.samples / counts[1]]
    return MetricTimes((bound - start) * grown[0], (measured - bound) * grown[1], each)


def _random(count: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((count, *shape), generator=generator) * 2 - 1
