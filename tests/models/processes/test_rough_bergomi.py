"""The Volterra process against its definition, and the model's martingale."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from models.processes.rough_bergomi import rough_bergomi, volterra_covariance


@pytest.mark.parametrize("hurst", [0.05, 0.1, 0.3, 0.49])
def test_covariance_is_the_integral_of_the_definition(hurst: float) -> None:
    """cov(Y_v, Y_u) = 2H int_0^u ((v - s) (u - s))^(H - 1/2) ds, by quadrature."""
    times, rho, power = np.array([0.1, 0.37, 0.38, 1.3]), -0.7, hurst - 0.5
    covariance = volterra_covariance(times, hurst, rho)
    assert np.allclose(covariance, covariance.T, rtol=0, atol=1e-15)
    for i, v in enumerate(times):
        assert covariance[i, i] == pytest.approx(v ** (2 * hurst), rel=1e-12)
        for j, u in enumerate(times[:i]):
            # the singular factor (u - s)^(H - 1/2) is quad's own weight
            whole = quad(lambda s, v=v: (v - s) ** power, 0, u, weight="alg", wvar=(0, power))[0]
            assert covariance[i, j] == pytest.approx(2 * hurst * whole, rel=1e-6)
        for j, u in enumerate(times):
            until = min(u, v)
            weight = {"weight": "alg", "wvar": (0, power)} if until == v else {}
            kernel = (lambda s: 1.0) if until == v else (lambda s, v=v: (v - s) ** power)
            whole = quad(kernel, 0, until, **weight)[0]
            expected = rho * np.sqrt(2 * hurst) * whole
            assert covariance[i, len(times) + j] == pytest.approx(expected, rel=1e-6)


def test_paths() -> None:
    """E V_t = xi0 and E S_t = S_0; log V has the law of the definition; leverage has rho's sign."""
    made = rough_bergomi(
        20000, 6, 1 / 6, np.random.default_rng(0),
        hurst=0.1, eta=1.2, rho=-0.8, xi0=0.04, substeps=4,
    )  # fmt: skip
    price, variance = np.exp(made[:, 0]), np.exp(made[:, 1])
    assert made.shape == (20000, 2, 6)
    for found, expected in ((price, 1.0), (variance, 0.04)):
        error = found.std(0) / np.sqrt(len(found))
        assert (np.abs(found.mean(0) - expected) < 5 * error).all()
    t = np.arange(1, 7) / 6
    deviation = 1.2 * t**0.1
    assert np.allclose(made[:, 1].std(0), deviation, rtol=0.03)
    assert np.allclose(made[:, 1].mean(0), np.log(0.04) - deviation**2 / 2, atol=0.05)
    assert np.corrcoef(np.diff(made[:, 0])[:, 0], np.diff(made[:, 1])[:, 0])[0, 1] < -0.3


def test_batches_do_not_change_the_law_and_seeds_do_change_the_paths() -> None:
    def made(seed: int) -> np.ndarray:
        options = {"hurst": 0.1, "eta": 1.9, "rho": -0.9, "xi0": 0.04, "substeps": 2}
        return rough_bergomi(8, 3, 0.1, np.random.default_rng(seed), **options)

    assert np.array_equal(made(0), made(0)) and not np.array_equal(made(0), made(1))
