"""Exact laws against simulation, each other and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.common.errors import InputError
from models.evaluation.series.gaussian_laws import (
    GaussianLaw,
    ar1_law,
    ks_limit,
    ks_per_time,
    law_errors,
    ou_law,
)
from tests.models.evaluation.series.made import ar1


def draw(law: GaussianLaw, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(law.mean, law.covariance, n, method="eigh")


def test_a_stationary_ar1_is_what_its_recursion_gives() -> None:
    law = ar1_law(24, 0.8, std=np.sqrt(1 - 0.64))
    errors = law_errors(ar1(20000, 0)[:, 0].numpy(), law)
    assert errors.mean.max() < 0.03 and errors.covariance < 0.03
    assert (errors.ks < ks_limit(20000, 0.9999)).all()


def test_a_started_ar1_is_what_its_recursion_gives() -> None:
    """Mean and covariance by x = A e, A lower triangular with powers of phi; |phi| > 1 too."""
    for phi in (0.9, -0.5, 1.0, 1.1):
        law = ar1_law(6, phi, std=0.3, start=2.0)
        steps = np.arange(6)
        lower = np.tril(float(phi) ** np.maximum(steps[:, None] - steps[None], 0))
        lower[:, 0] = 0  # no innovation at the start
        np.testing.assert_allclose(law.covariance, 0.09 * lower @ lower.T, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(law.mean, 2.0 * float(phi) ** steps)


def test_ou_is_an_exact_ar1_and_brownian_motion_in_the_limit() -> None:
    law = ou_law(30, theta=1.5, std=0.4, dt=0.1, mu=2.0)
    np.testing.assert_allclose(law.std, 0.4 / np.sqrt(2 * 1.5), rtol=1e-12)
    assert law.covariance[3, 8] == pytest.approx(law.std[0] ** 2 * np.exp(-1.5 * 0.5), rel=1e-10)
    slow = ou_law(5, theta=1e-9, std=0.4, dt=0.1, mu=0.0, start=0.0)
    times = 0.1 * np.arange(5)
    np.testing.assert_allclose(
        slow.covariance, 0.16 * np.minimum(times[:, None], times[None]), rtol=1e-6, atol=1e-12
    )
    started = ou_law(5, theta=1.5, std=0.4, dt=0.1, mu=2.0, start=5.0)
    np.testing.assert_allclose(started.mean, 2 + 3 * np.exp(-1.5 * times), rtol=1e-12)


def test_errors_are_those_that_were_put_in() -> None:
    law = ou_law(10, theta=1.0, std=1.0, dt=0.2)
    x = draw(law, 20000, 0)
    assert law_errors(x, law).covariance < 0.05
    moved = law_errors(x + 0.5 * law.std, law)
    np.testing.assert_allclose(moved.mean, 0.5, atol=0.03)
    # sup |Phi(z) - Phi(z - 0.5)| is at z = 0.25
    np.testing.assert_allclose(moved.ks, 2 * stats.norm.cdf(0.25) - 1, atol=0.02)
    assert law_errors(1.2 * x, law).covariance == pytest.approx(0.44, abs=0.05)
    assert (law_errors(1.2 * x, law).ks > ks_limit(20000, 0.9999)).all()


def test_a_fixed_start_is_checked_as_a_value() -> None:
    law = ou_law(4, theta=1.0, std=1.0, dt=0.5, start=1.0)
    x = draw(law, 500, 0)
    x[:, 0] = 1.0
    assert ks_per_time(x, law)[0] == 0
    x[3, 0] = 1.1
    assert ks_per_time(x, law)[0] == 1
    assert np.isfinite(law_errors(x, law).mean).all()


def test_the_limit_is_the_quantile_of_the_right_law() -> None:
    rng = np.random.default_rng(0)
    values = [stats.ks_1samp(rng.normal(size=100), stats.norm.cdf).statistic for _ in range(500)]
    assert 0.92 < np.mean(np.array(values) < ks_limit(100)) < 0.98


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"phi = 1.0: expected \|phi\| < 1"):
        ar1_law(5, 1.0)
    with pytest.raises(InputError, match="theta = 0: expected a positive rate"):
        ou_law(5, 0, 1.0, 0.1)
    with pytest.raises(InputError, match=r"series of shape \(3, 4\): expected \(n, 5\)"):
        law_errors(np.zeros((3, 4)), ar1_law(5, 0.5))
