"""Correlations against numpy and the laws of AR(1) and of a delayed channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.evaluation.base import MetricOptions, Samples, bootstrap_counts
from models.evaluation.series.correlations import (
    ACF,
    AbsoluteACF,
    CrossCorrelation,
    correlations,
    lags_of,
)
from tests.models.evaluation.series.made import ar1, measured


def test_lags_are_half_the_length_at_most_twenty() -> None:
    assert [lags_of(length) for length in (2, 3, 10, 64)] == [1, 1, 5, 20]


def test_correlations_are_means_of_products() -> None:
    x = ar1(25, 0, channels=2, length=9).numpy() + 3
    found = correlations(x, 4)[0]
    mean, std = x.mean((0, 2)), x.std((0, 2))
    for i, j, lag in np.ndindex(2, 2, 5):
        early, late = x[:, i, : 9 - lag] - mean[i], x[:, j, lag:] - mean[j]
        expected = (early * late).mean() / (std[i] * std[j])
        assert found[i, j, lag] == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert found[0, 0, 0] == pytest.approx(1) and found[1, 1, 0] == pytest.approx(1)


def test_resamples_are_those_of_repeated_paths() -> None:
    x = ar1(20, 0, channels=2, length=9).numpy() + 1
    counts = bootstrap_counts(20, 2, 3)
    repeated = np.repeat(x, counts[1].astype(int), axis=0)
    np.testing.assert_allclose(
        correlations(x, 3, counts)[1], correlations(repeated, 3)[0], rtol=1e-10, atol=1e-12
    )


def test_ar1_has_the_powers_of_phi() -> None:
    found = correlations(ar1(20000, 0, phi=0.7).numpy(), 6)[0, 0, 0]
    np.testing.assert_allclose(found, 0.7 ** np.arange(7), atol=0.01)


def test_the_difference_is_that_of_the_laws() -> None:
    value = measured(ACF, ar1(20000, 0, phi=0.8), ar1(20000, 1, phi=0.6)).value
    lags = np.arange(1, 13)
    assert value == pytest.approx(np.sqrt(np.mean((0.8**lags - 0.6**lags) ** 2)), rel=0.05)


def test_clusters_of_volatility_are_seen_by_absolute_values_alone() -> None:
    """White noise times a slow positive factor: no autocorrelation, but that of |x|."""
    n = 3000
    factor = torch.exp(0.7 * ar1(n, 2, phi=0.95)) / np.exp(0.49)
    white, clustered = ar1(n, 0, phi=0.0), ar1(n, 1, phi=0.0) * factor
    assert measured(ACF, white, clustered).value < 0.02
    assert measured(AbsoluteACF, white, clustered).value > 0.1


def test_cross_correlation_sees_order_in_time() -> None:
    """Channel 1 follows channel 0 by two times, or leads by two."""
    source = ar1(4000, 0, phi=0.0, length=30)[:, 0]
    follows = torch.stack([source[:, 2:], source[:, :-2]], 1)
    leads = torch.stack([source[:, :-2], source[:, 2:]], 1)
    real = Samples(series=follows)
    metric = CrossCorrelation(real, MetricOptions())
    lags = lags_of(28)
    # two of 2 (lags + 1) correlations are 1 where the other set has 0
    expected = np.sqrt(2 / (2 * (lags + 1)))
    assert metric(Samples(series=leads)).value == pytest.approx(expected, rel=0.05)
    assert metric(real).value == pytest.approx(0, abs=1e-12)
    assert measured(ACF, follows, leads).value < 0.02
