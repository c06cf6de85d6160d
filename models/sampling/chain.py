"""The teacher's sampler as a fine chain, and its exact unrolling over coarse intervals.

    sigma_{k|k+1}^2 = sigma_k^2 - (alpha_k / alpha_{k+1})^2 sigma_{k+1}^2
    s_k = eta sigma_{k+1} / sigma_k sigma_{k|k+1}
    a_k = sqrt(sigma_{k+1}^2 - s_k^2) / sigma_k,   b_k = alpha_{k+1} - alpha_k a_k
    x_{k+1} = a_k x_k + b_k denoise(x_k, t_k) + s_k z_k
    (1)

eta = 1 is DDPM's posterior step (Ho et al. 2020), eta = 0 is DDIM (Song et al. 2021). Over an
interval [lo, hi), with T_k the product of a_l for k < l < hi, unrolling (1) is an identity:

    x_hi = A x_lo + B Dbar + n,   A = prod a_k,   B = sum T_k b_k,   Dbar = sum omega_k
    denoise(x_k, t_k),
    omega_k = T_k b_k / B,   n = sum w_k z_k,   w_k = T_k s_k
    (2)

Everything here is float64 numpy, computed once per grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.common.errors import InputError
from models.teachers.schedule import Levels


@dataclass(frozen=True)
class Chain:
    """Coefficients of (1). ``levels``: K + 1 noise levels, ``eta`` in [0, 1]; ``a``, ``b``, ``s``:
    (K,).
    """

    levels: Levels
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"trajectories.eta = {self.eta}: expected 0 (DDIM) to 1 (DDPM)")
        if np.any(np.diff(self.snr) <= 0):
            raise InputError(
                "the teacher's noise levels must lose noise at every step: its schedule is not "
                "monotone"
            )

    @property
    def steps(self) -> int:
        return self.levels.steps

    @cached_property
    def s(self) -> np.ndarray:
        alpha, sigma = self.levels.alpha, self.levels.sigma
        conditional = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:]) ** 2 * sigma[1:] ** 2
        s: np.ndarray = self.eta * sigma[1:] / sigma[:-1] * np.sqrt(np.maximum(conditional, 0.0))
        return s

    @cached_property
    def a(self) -> np.ndarray:
        sigma = self.levels.sigma
        a: np.ndarray = np.sqrt(np.maximum(sigma[1:] ** 2 - self.s**2, 0.0)) / sigma[:-1]
        return a

    @cached_property
    def b(self) -> np.ndarray:
        return np.asarray(self.levels.alpha[1:] - self.levels.alpha[:-1] * self.a)

    @cached_property
    def g(self) -> np.ndarray:
        """Noise loading in coordinates x / alpha, (K,)."""
        return np.asarray(self.s / self.levels.alpha[1:])

    @property
    def snr(self) -> np.ndarray:
        """(alpha / sigma)^2, (K + 1,), from 0 or near it up to infinity."""
        with np.errstate(divide="ignore"):
            return np.asarray((self.levels.alpha / self.levels.sigma) ** 2)

    @property
    def half_logsnr(self) -> np.ndarray:
        """lambda = log(alpha / sigma), (K + 1,); -inf at pure noise, +inf at clean data."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.levels.alpha) - np.log(self.levels.sigma))


@dataclass(frozen=True)
class Interval:
    """(2) over fine steps [lo, hi): scalars ``A``, ``B``; ``omega`` and ``w``: (hi - lo,)."""

    lo: int
    hi: int
    A: float
    B: float
    omega: np.ndarray
    w: np.ndarray


def unroll(chain: Chain, lo: int, hi: int) -> Interval:
    """The coefficients of identity (2) for 0 <= lo < hi <= K."""
    a, b, s = chain.a[lo:hi], chain.b[lo:hi], chain.s[lo:hi]
    tail = np.append(np.cumprod(a[:0:-1])[::-1], 1.0)
    loads = tail * b
    return Interval(lo, hi, float(np.prod(a)), float(loads.sum()), loads / loads.sum(), tail * s)
