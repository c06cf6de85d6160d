"""The rough Bergomi model (Bayer, Friz and Gatheral 2016), its Gaussian part drawn exactly.

    V_t = xi0 exp(eta Y_t - eta^2 t^(2H) / 2),   Y_t = sqrt(2H) int_0^t (t - s)^(H - 1/2) dW_s
    d log S = sqrt(V) dZ - V dt / 2,             d<W, Z> = rho dt,   0 < H < 1/2

(Y, Z) on a grid is one Gaussian vector. Its covariance is known in closed form and its Cholesky
factor gives exact draws, where the hybrid scheme (Bennedsen, Lunde and Pakkanen 2017) is faster
and approximate. log S is the left-point sum over that grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import hyp2f1

Floats = NDArray[np.float64]


def volterra_covariance(times: Floats, hurst: float, rho: float) -> Floats:
    """(2 n, 2 n): covariance of (Y at the times, Z at the times); ``times`` (n,) > 0, ascending."""
    later = np.maximum.outer(times, times)
    earlier = np.minimum.outer(times, times)
    gamma = 0.5 - hurst
    x = later / earlier
    # cov(Y_v, Y_u) = u^(2H) G(v / u), u <= v; G is 1 at 1, where the series is at its edge
    series = hyp2f1(1.0, gamma, 2.0 - gamma, 1.0 / x)
    kernel = (1.0 - 2.0 * gamma) / (1.0 - gamma) * x**-gamma * series
    volterra = earlier ** (2.0 * hurst) * np.where(later == earlier, 1.0, kernel)
    # cov(Y_v, Z_u) = rho sqrt(2H) int_0^min(u, v) (v - s)^(H - 1/2) ds; rows v, columns u
    power = hurst + 0.5
    v = times[:, None]
    cross = rho * np.sqrt(2.0 * hurst) / power * (v**power - (v - earlier) ** power)
    whole: Floats = np.block([[volterra, cross], [cross.T, earlier]])
    return whole


def rough_bergomi(
    count: int,
    length: int,
    dt: float,
    rng: np.random.Generator,
    *,
    hurst: float,
    eta: float,
    rho: float,
    xi0: float,
    substeps: int = 8,
    batch: int = 1024,
) -> Floats:
    """(count, 2, length): log(S_t / S_0) and log V_t at times dt, 2 dt, .., length dt.

    ``substeps``: points of the grid in each dt, for the sum that makes log S.
    """
    step = dt / substeps
    times: Floats = step * np.arange(1, length * substeps + 1, dtype=np.float64)
    n = len(times)
    factor = np.linalg.cholesky(volterra_covariance(times, hurst, rho))
    made = np.empty((count, 2, length))
    for low in range(0, count, batch):
        rows = slice(low, min(low + batch, count))
        joint = rng.standard_normal((rows.stop - low, 2 * n)) @ factor.T
        log_variance = np.log(xi0) + eta * joint[:, :n] - 0.5 * eta**2 * times ** (2.0 * hurst)
        moves = np.diff(joint[:, n:], axis=1, prepend=0.0)  # dZ
        # V at the left end of each step; xi0 at the first
        before = np.exp(np.insert(log_variance[:, :-1], 0, np.log(xi0), axis=1))
        log_price = np.cumsum(np.sqrt(before) * moves - 0.5 * before * step, axis=1)
        every = slice(substeps - 1, None, substeps)
        made[rows, 0], made[rows, 1] = log_price[:, every], log_variance[:, every]
    return made
