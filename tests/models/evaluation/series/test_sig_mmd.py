"""Signature MMD against sums over pairs; the permutation test's level and power."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.base import MetricOptions, Samples
from models.evaluation.series.sig_mmd import (
    SigMMD,
    SigMMDPValue,
    permutation_test,
    weighted_mmd2,
)
from tests.models.evaluation.series.made import ar1, measured


def test_it_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(0.5, 1, size=(4, 3))
    within_x = sum(x[i] @ x[j] for i in range(5) for j in range(5) if i != j) / 20
    within_y = sum(y[i] @ y[j] for i in range(4) for j in range(4) if i != j) / 12
    expected = within_x + within_y - 2 * float((x @ y.T).mean())
    found = weighted_mmd2(x, y, np.ones((1, 5)), np.ones((1, 4)))
    assert found[0] == pytest.approx(expected, rel=1e-12)


def test_unbiased_for_one_law() -> None:
    values = [measured(SigMMD, ar1(60, 2 * s), ar1(60, 2 * s + 1)).value for s in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert min(values) < 0


def test_the_p_value_is_uniform_for_one_law_and_small_for_two() -> None:
    rng = np.random.default_rng(1)
    p = [
        permutation_test(rng.normal(size=(30, 4)), rng.normal(size=(25, 4)), seed, 99)
        for seed in range(300)
    ]
    for level in (0.05, 0.2, 0.5, 0.8):
        share = np.mean(np.array(p) <= level)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 300) + 0.01
    assert permutation_test(rng.normal(size=(30, 4)), rng.normal(1, 1, (30, 4)), 0, 99) == 0.01
    same = np.ones((10, 2))
    assert permutation_test(same, same, 0, 99) == 1.0


def test_the_p_value_of_paths() -> None:
    real = Samples(series=ar1(200, 0))
    test = SigMMDPValue(real, MetricOptions(few=150))
    assert test(Samples(series=ar1(200, 1))).value > 0.05
    assert test(Samples(series=ar1(200, 1, phi=0.6))).value == pytest.approx(1 / 501)
