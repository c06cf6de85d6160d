"""The Fréchet distance against closed forms and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from models.evaluation.base import MetricOptions, Samples
from models.evaluation.frechet import FrechetDistance, frechet_distance, gaussian_frechet
from tests.models.evaluation.samples import normal


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


def test_resamples_are_centred_on_the_value_and_paired() -> None:
    real, base = normal(200, 4, 0), normal(200, 4, 1, mean=0.3)
    metric = FrechetDistance(Samples(features=real), MetricOptions(resamples=200))
    near, far = (metric(Samples(features=base + by)) for by in (0.0, 0.1))
    assert near.value == frechet_distance(base, real)
    assert near.draws[1:].mean() == pytest.approx(near.value, rel=1e-12)
    assert near.low < near.value < near.high
    gap = near.minus(far)
    assert gap.high < 0 and gap.high - gap.low < near.high - near.low


def test_only_the_first_few_are_measured() -> None:
    real, fake = normal(100, 4, 0), normal(90, 4, 1)
    metric = FrechetDistance(Samples(features=real), MetricOptions(few=60))
    assert metric(Samples(features=fake)).value == frechet_distance(fake[:60], real)
