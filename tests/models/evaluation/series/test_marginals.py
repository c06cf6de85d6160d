"""Marginal distances against scipy and a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from models.evaluation.series.marginals import Marginal, wasserstein
from tests.models.evaluation.series.made import ar1, measured


def test_distances_equal_scipy_with_and_without_weights() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2, 4)), rng.normal(0.3, 1.4, size=(21, 2, 4))
    x[:5] = x[5:10]  # ties
    counts_x = np.stack([np.ones(30), rng.integers(0, 4, 30)])
    counts_y = np.stack([np.ones(21), rng.integers(0, 4, 21)])
    found = wasserstein(x, y, counts_x, counts_y)
    for row in range(2):
        for place in np.ndindex(2, 4):
            column = (slice(None), *place)
            expected = wasserstein_distance(x[column], y[column], counts_x[row], counts_y[row])
            assert found[(row, *place)] == pytest.approx(expected, rel=1e-10)


def test_a_shift_is_its_size_in_deviations_of_the_real_channel() -> None:
    real = 7 * ar1(400, 0)
    shifted = real + 2.1
    assert measured(Marginal, real, shifted).value == pytest.approx(
        2.1 / float(real.std()), rel=1e-3
    )
    assert measured(Marginal, real, real).value == pytest.approx(0, abs=1e-12)
