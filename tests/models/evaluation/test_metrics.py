"""Metrics against closed forms, second implementations and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_kernel, poly_mmd

from models.common.errors import InputError
from models.evaluation.metrics import (
    Kid,
    frechet_distance,
    gaussian_frechet,
    kid,
    path_rmse,
    polynomial_kernel,
    precision_recall,
)


def normal(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(
        n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


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
        table = Kid(real, resamples=100, seed=seed)
        table.add("same", normal(100, 1, 3 * seed + 1)).add(
            "moved", normal(100, 1, 3 * seed + 2, mean=shift)
        )
        same.append(table.value("same"))
        moved.append(table.value("moved"))
        interval = table.interval("moved")
        covered += interval.low <= truth <= interval.high
    for values, expected in ((same, 0.0), (moved, truth)):
        assert abs(np.mean(values) - expected) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(same) < 0  # an unbiased estimate of 0 has to go below it
    assert 0.85 <= covered / 150 <= 1.0


def test_interval_holds_its_value_and_is_reproducible() -> None:
    real, fake = normal(120, 8, 0), normal(90, 8, 1, mean=0.3)
    first = Kid(real, 300, seed=5).add("a", fake).interval("a")
    assert first == Kid(real, 300, seed=5).add("a", fake).interval("a")
    assert first != Kid(real, 300, seed=6).add("a", fake).interval("a")
    assert first.low < first.value < first.high
    alone = Kid(real).add("a", fake).interval("a")
    assert alone.low == alone.value == alone.high == first.value


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    real, base = normal(300, 6, 0), normal(300, 6, 1, mean=0.6)
    table = Kid(real, 400, seed=0).add("worse", base + 0.05).add("better", base)
    pair = table.difference("better", "worse")
    assert pair.value == pytest.approx(table.value("better") - table.value("worse"), rel=1e-12)
    assert pair.high < 0
    assert (
        table.interval("better").high > table.interval("worse").low
    )  # their own intervals overlap


@pytest.mark.parametrize("rank", [3, 12])
def test_frechet_distance_of_gaussians_in_closed_form(rank: int) -> None:
    """Commuting covariances: |m1 - m2|^2 + sum (sqrt(l1) - sqrt(l2))^2, also for singular ones."""
    rng = np.random.default_rng(0)
    basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(12, 12)))[0])
    first, second = torch.from_numpy(rng.uniform(0.1, 4, (2, 12)))
    first[rank:] = 0
    mean = torch.from_numpy(rng.normal(size=12))
    expected = float(mean.square().sum() + (first.sqrt() - second.sqrt()).square().sum())
    covariances = [basis * values @ basis.T for values in (first, second)]
    assert gaussian_frechet(mean, covariances[0], 0 * mean, covariances[1]) == pytest.approx(
        expected, rel=1e-6
    )
    assert gaussian_frechet(0 * mean, covariances[1], mean, covariances[0]) == pytest.approx(
        expected, rel=1e-6
    )


def test_frechet_distance_equals_torchmetrics_and_sees_affine_maps() -> None:
    x, y = normal(400, 16, 0), normal(300, 16, 1, mean=0.4, std=1.5)
    theirs = _compute_fid(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(float(theirs), rel=1e-8)
    # y = 2 x + 1: W2^2 = |2 m + 1 - m|^2 + tr C, exactly, for the samples' own moments.
    expected = float((x.mean(0) + 1).square().sum() + torch.cov(x.T).trace())
    assert frechet_distance(2 * x + 1, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    few = normal(10, 64, 2)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_at_known_values() -> None:
    x = normal(80, 5, 0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x + 1000, x) == (0.0, 0.0)
    half = torch.cat([x[:40], x[:40] + 1000])
    assert precision_recall(half, x)[0] == 0.5
    # All fakes in one of two far clusters: precise, but half of the real data is missed.
    real = torch.cat([x, x + 1000])
    precision, recall = precision_recall(x[torch.arange(80)], real)
    assert precision == 1.0 and recall == 0.5


def test_precision_counts_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii for k = 1: 1, 1, 2, 4
    fake = torch.tensor([[-1.5], [2.5], [11.0], [11.1]])  # radii for k = 1: 4, 4, 0.1, 0.1
    precision, recall = precision_recall(fake, real, neighbours=1)
    assert precision == 0.5  # 2.5 and 11.0 are inside
    assert recall == 0.75  # 7.0 is 4.5 from 2.5 and 4.0 from 11.0


def test_path_rmse_per_step() -> None:
    reference = normal(50, 4 * 6, 0).reshape(50, 4, 1, 2, 3)
    offsets = torch.tensor([9.0, 0.0, 1.0, 2.0]).view(1, 4, 1, 1, 1)
    found = path_rmse(reference + offsets, reference, resamples=50, seed=0)
    assert [round(step.value, 9) for step in found] == [0.0, 1.0, 2.0]
    noisy = path_rmse(reference + 0.1 * torch.randn(50, 4, 1, 2, 3), reference, resamples=50)
    assert all(step.low < step.value < step.high for step in noisy)
    with pytest.raises(InputError, match="paths of shape"):
        path_rmse(reference[:, :3], reference)


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (normal(5, 4, 0), r"features of shape \(5, 4\) against \(20, 3\)"),
        (normal(1, 3, 0), "expected .n, d. and .m, d. with n, m >= 2"),
        (normal(5, 3, 0) * float("nan"), "NaN or infinite"),
    ],
)
def test_bad_features_give_one_line(fake: Tensor, words: str) -> None:
    real = normal(20, 3, 1)
    for metric in (kid, frechet_distance, precision_recall):
        with pytest.raises(InputError, match=words):
            metric(fake, real)
    with pytest.raises(InputError, match="neighbours = 5: expected 1 to 4"):
        precision_recall(normal(5, 3, 0), real, 5)
