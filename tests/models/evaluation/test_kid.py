"""KID against sums over pairs, a second implementation and laws; its blocks of rows."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_kernel, poly_mmd

from models.common.errors import InputError
from models.evaluation import kid as module
from models.evaluation.base import Estimate, MetricOptions, Samples, chunks
from models.evaluation.kid import KID, kid, polynomial_kernel
from tests.models.evaluation.samples import normal
from tests.paths import PROJECT

GROWTH = """
import torch
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.kid import KID
from models.evaluation.precision_recall import precision_recall
from tasks.utils.peak_memory import own_peak
few = torch.randn(200, 4)
KID(Samples(features=few), MetricOptions(5))(Samples(features=few)), precision_recall(few, few)
before = own_peak()
real, fake = torch.randn(2, 8000, 4)
KID(Samples(features=real), MetricOptions(5))(Samples(features=fake))
print((own_peak() - before) // 1024**2)
"""


def bound(real: Tensor, resamples: int = 0, seed: int = 0) -> KID:
    return KID(Samples(features=real), MetricOptions(resamples, seed))


def measured(metric: KID, fake: Tensor) -> Estimate:
    return metric(Samples(features=fake))


def test_kid_is_the_sum_over_pairs() -> None:
    x, y = normal(5, 3, 0), normal(4, 3, 1, mean=0.5)
    k = lambda a, b: (float(a @ b) / 3 + 1) ** 3  # noqa: E731
    within_x = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(k(a, b) for a in x for b in y) / 20
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_kid_equals_torchmetrics() -> None:
    x, y = normal(200, 24, 0, mean=0.2), normal(200, 24, 1)
    theirs = poly_mmd(x, y)
    assert kid(x, y) == pytest.approx(float(theirs), rel=1e-9)
    assert torch.allclose(polynomial_kernel(x, y), poly_kernel(x, y))


def test_kid_is_unbiased_and_its_interval_covers_the_truth() -> None:
    """For d = 1 the kernel is (xy + 1)^3, so MMD^2 = sum over moments p of binom(3, p) (E x^p - E
    y^p)^2.
    """
    shift = 0.5
    moments = [shift, shift**2, 3 * shift + shift**3]
    truth = sum(math.comb(3, p) * m**2 for p, m in zip((1, 2, 3), moments, strict=True))
    same, moved, covered = [], [], 0
    for seed in range(150):
        real = normal(150, 1, 3 * seed)
        metric = bound(real, resamples=100, seed=seed)
        same.append(measured(metric, normal(100, 1, 3 * seed + 1)).value)
        estimate = measured(metric, normal(100, 1, 3 * seed + 2, mean=shift))
        moved.append(estimate.value)
        interval = estimate.interval()
        covered += interval.low <= truth <= interval.high
    for values, expected in ((same, 0.0), (moved, truth)):
        assert abs(np.mean(values) - expected) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(same) < 0  # an unbiased estimate of 0 has to go below it
    assert 0.85 <= covered / 150 <= 1.0


def test_interval_holds_its_value_and_is_reproducible() -> None:
    real, fake = normal(120, 8, 0), normal(90, 8, 1, mean=0.3)
    first = measured(bound(real, 300, seed=5), fake).interval()
    assert first == measured(bound(real, 300, seed=5), fake).interval()
    assert first != measured(bound(real, 300, seed=6), fake).interval()
    assert first.low < first.value < first.high
    alone = measured(bound(real), fake)
    assert alone.low == alone.value == alone.high == first.value


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    real, base = normal(300, 6, 0), normal(300, 6, 1, mean=0.6)
    metric = bound(real, 400, seed=0)
    worse, better = measured(metric, base + 0.05), measured(metric, base)
    pair = better.minus(worse)
    assert pair.value == pytest.approx(better.value - worse.value, rel=1e-12)
    assert pair.high < 0
    assert better.high > worse.low  # their own intervals overlap
    with pytest.raises(InputError, match="400 and 0 resamples: expected two of one metric"):
        better.minus(measured(bound(real), base))


def test_blocks_of_rows_give_the_value_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(300, 6, 0), normal(200, 6, 1, mean=0.2)
    whole = measured(bound(real, 50), fake)
    largest = 0

    def watched(x: Tensor, y: Tensor) -> Any:
        nonlocal largest
        largest = max(largest, len(x) * len(y))
        return polynomial_kernel(x, y)

    monkeypatch.setattr(module, "polynomial_kernel", watched)
    monkeypatch.setattr(module, "chunks", lambda n, m: chunks(n, m, limit=8 * 300 * 17))
    blocks = measured(bound(real, 50), fake)
    np.testing.assert_allclose(blocks.draws, whole.draws, rtol=1e-12, atol=1e-14)
    assert largest <= 300 * 17


@pytest.mark.parametrize(
    ("rows", "columns", "limit"), [(10, 3, 48), (1, 10**9, 8), (50000, 50000, 2**27)]
)
def test_chunks_cover_all_rows_once_within_the_limit(rows: int, columns: int, limit: int) -> None:
    parts = list(chunks(rows, columns, limit))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert all(size == 1 or 8 * size * columns <= limit for size in sizes)


def test_memory_does_not_grow_with_the_square_of_the_samples() -> None:
    """The whole kernel of 8,000 samples takes 512 MB, twice that while it is made."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 600
