"""Coefficients of Sig-DEG's coarse steps, from noise levels alone: float64 numpy, once per run.

This file and ``sigdeg_scheduler.py`` are self-contained, so that they can travel in a model folder.
They repeat the mathematics of models/sampling and models/methods/sigdeg/integrator.py, to which
tests hold them equal; the signature weights come from a closed formula, so iisignature is not
needed. The fine chain has K steps from noise level k to k + 1 (less noise), eta in [0, 1]:

    x_{k+1} = a_k x_k + b_k denoise(x_k, t_k) + s_k z_k                                   (1)
    x_hi = A x_lo + B Dbar + n,  Dbar = sum_k omega_k denoise(x_k, t_k),  n = sum_k w_k z_k  (2)

The noise of an interval is followed through xi = Q^T z, the partial signature of its Brownian path:
Q is an orthonormal basis of w and of the depth-m signature weights, in z's coordinates,

    c_p[k] = g_k (u_{k+1}^{p+1} - u_k^{p+1}) / ((p + 1)! (u_{k+1} - u_k)),                (4)
    u_{k+1} - u_k = g_k^2, the quadratic variation of step k in coordinates x / alpha
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DEPENDENT = 1e-7  # a column with less than this left after orthogonalisation is dropped


@dataclass(frozen=True)
class FineChain:
    """K fine steps. ``t``: (K,) times for the network; ``alpha``, ``sigma``: (K + 1,), the last
    level clean (sigma = 0); ``eta``: 0 is DDIM, 1 is DDPM's posterior. ValueError where eta is out
    of range or a step does not lose noise.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta = {self.eta}: expected 0 (DDIM) to 1 (DDPM)")
        # sigma / alpha in the form that also takes alpha = 0, where a schedule starts at pure noise
        if np.any(self.sigma[1:] * self.alpha[:-1] >= self.sigma[:-1] * self.alpha[1:]):
            raise ValueError("noise levels: expected less noise at every step; check the schedule")

    @property
    def steps(self) -> int:
        return len(self.t)

    @cached_property
    def s(self) -> np.ndarray:
        alpha, sigma = self.alpha, self.sigma
        conditional = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:]) ** 2 * sigma[1:] ** 2
        s: np.ndarray = self.eta * sigma[1:] / sigma[:-1] * np.sqrt(np.maximum(conditional, 0.0))
        return s

    @cached_property
    def a(self) -> np.ndarray:
        a: np.ndarray = np.sqrt(np.maximum(self.sigma[1:] ** 2 - self.s**2, 0.0)) / self.sigma[:-1]
        return a

    @cached_property
    def b(self) -> np.ndarray:
        return np.asarray(self.alpha[1:] - self.alpha[:-1] * self.a)

    @cached_property
    def half_logsnr(self) -> np.ndarray:
        """lambda = log(alpha / sigma), (K + 1,): the first one extrapolated where it is -inf."""
        with np.errstate(divide="ignore"):
            lam = np.asarray(np.log(self.alpha) - np.log(self.sigma))
        if not np.isfinite(lam[0]):
            lam[0] = 2 * lam[1] - lam[2] if self.steps > 2 else lam[1] - 1.0
        return lam

    def unroll(self, lo: int, hi: int) -> tuple[float, float, np.ndarray, np.ndarray]:
        """A, B, omega and w of (2) over the fine steps lo .. hi - 1; the arrays have hi - lo
        entries.
        """
        a, b, s = self.a[lo:hi], self.b[lo:hi], self.s[lo:hi]
        tail = np.append(np.cumprod(a[:0:-1])[::-1], 1.0)  # product of the a after each step
        loads = tail * b
        return float(np.prod(a)), float(loads.sum()), loads / loads.sum(), tail * s


@dataclass(frozen=True)
class CoarseStep:
    """One network call: X = a Y + b sum_j predict_j D_{i-j} + m . xi is asked at (t, alpha, sigma),
    Dbar = D + sum_j mix_j (D - D_{i-j}), and Y' = A Y + B Dbar + n . xi. ``draws`` says which of
    the m + 1 features enter anything; the others need no random numbers.
    """

    t: float
    alpha: float
    sigma: float
    a: float
    b: float
    m: tuple[float, ...]
    predict: tuple[float, ...]
    A: float
    B: float
    n: tuple[float, ...]
    mix: tuple[float, ...]

    @property
    def draws(self) -> tuple[int, ...]:
        return tuple(p for p, pair in enumerate(zip(self.m, self.n, strict=True)) if any(pair))


@dataclass(frozen=True)
class Gains:
    """Free numbers of a plan. ``look_ahead``: how far along the step, 0 to 1, the network is asked;
    ``gain``, ``last_gain``: factors on the extrapolation, in the last step apart; ``noise_gain``:
    factor on the chain's noise, 1 being its law.
    """

    look_ahead: float = 0.25
    gain: float = 1.0
    last_gain: float = 0.0
    noise_gain: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.look_ahead <= 1.0:
            raise ValueError(f"look_ahead = {self.look_ahead}: expected 0 to 1")


def signature_basis(chain: FineChain, lo: int, hi: int, depth: int) -> np.ndarray:
    """Q, (hi - lo, depth + 1): orthonormal columns from [w, c_0, .., c_{m-1}], zero where a column
    depends on those before it. u is measured in units of the interval's length.
    """
    g = chain.s[lo:hi] / chain.alpha[lo + 1 : hi + 1]
    total = float((g**2).sum()) or 1.0
    u = np.append(0.0, np.cumsum(g**2)) / total
    # (4) with the division carried out, so that short cells lose no digits:
    # (v^{p+1} - u^{p+1}) / (v - u) = sum_j v^j u^{p-j}
    means = [
        sum(u[1:] ** j * u[:-1] ** (p - j) for j in range(p + 1)) / math.factorial(p + 1)
        for p in range(depth)
    ]
    raw = np.column_stack([chain.unroll(lo, hi)[3], *(mean * g for mean in means)])
    norms = np.linalg.norm(raw, axis=0)
    raw = raw / np.where(norms > 0, norms, 1.0)
    Q = np.zeros_like(raw)
    for j in range(depth + 1):  # modified Gram-Schmidt, twice
        rest = raw[:, j].copy()
        for _ in range(2):
            rest -= Q[:, :j] @ (Q[:, :j].T @ rest)
        length = float(np.linalg.norm(rest))
        if length > DEPENDENT:
            Q[:, j] = rest / length
    return Q


def coarse_grid(
    chain: FineChain, steps: int, kind: str, points: Sequence[int] | None = None
) -> list[int]:
    """N + 1 increasing fine indices from 0 to K. ``logsnr``: equal steps of log-SNR; ``index``:
    equal numbers of fine steps; ``given``: every r-th of ``points``, or those nearest to equal
    parts of them. ValueError where that is not possible.
    """
    K = chain.steps
    if kind == "given":
        points = [int(p) for p in points or ()]
        parts = len(points) - 1
        sound = parts > 0 and points[0] == 0 and points[-1] == K
        if not sound or any(hi <= lo for lo, hi in itertools.pairwise(points)):
            raise ValueError(f"points = {points}: expected increasing fine indices from 0 to {K}")
        if steps > parts:
            raise ValueError(
                f"num_inference_steps = {steps}: expected at most {parts}, the intervals of points"
            )
        return [points[(2 * i * parts + steps) // (2 * steps)] for i in range(steps + 1)]
    if kind == "index":
        return [int(p) for p in np.round(np.linspace(0, K, steps + 1))]
    if kind != "logsnr":
        raise ValueError(f"grid = {kind!r}: expected logsnr, index or given")
    lam = chain.half_logsnr[:K]
    wanted = np.linspace(lam[0], lam[-1], steps + 1)
    grid = [*(int(k) for k in np.abs(lam[None] - wanted[:, None]).argmin(1)[:-1]), K]
    for i in range(1, steps):  # points that coincide move apart by as little as needed
        grid[i] = max(grid[i], grid[i - 1] + 1)
    for i in range(steps - 1, 0, -1):
        grid[i] = min(grid[i], grid[i + 1] - 1)
    return grid


def query_points(chain: FineChain, grid: Sequence[int], look_ahead: float) -> list[int]:
    """The fine levels at which the network is asked: ``look_ahead`` of each interval's half log-SNR
    on. The first is the start itself, since a pipeline hands over plain noise.
    """
    lam, asked = chain.half_logsnr, [grid[0]]
    for lo, hi in itertools.pairwise(grid[1:]):
        top = lam[min(hi, chain.steps - 1)]
        wanted = lam[lo] + look_ahead * (top - lam[lo])
        asked.append(lo + int(np.abs(lam[lo:hi] - wanted).argmin()))
    return asked


def lagrange_means(points: Sequence[float], at: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_k weights[k] L_j(at[k]) for the Lagrange basis L_j on ``points``."""
    out = np.empty(len(points))
    for j, own in enumerate(points):
        values = weights.copy()
        for i, other in enumerate(points):
            if i != j:
                values = values * (at - other) / (own - other)
        out[j] = values.sum()
    return out


def make_plan(
    chain: FineChain,
    grid: Sequence[int],
    asked: Sequence[int],
    *,
    depth: int,
    order: int,
    predict_order: int,
    gains: Gains,
) -> list[CoarseStep]:
    """One step per interval of ``grid`` (N + 1 fine indices); the network is asked at the fine
    levels ``asked`` (N,). ``order``: points of the extrapolation (7) of Dbar; ``predict_order``:
    of the one to the asked state (6).
    """
    lam = chain.half_logsnr
    plan: list[CoarseStep] = []
    past: list[float] = []  # half log-SNR of the earlier asked states, newest first
    last = len(asked) - 1
    for i, ((lo, hi), k) in enumerate(zip(itertools.pairwise(grid), asked, strict=True)):
        A, B, omega, w = chain.unroll(lo, hi)
        Q = signature_basis(chain, lo, hi, depth)
        a, b, m, predict = 1.0, 0.0, np.zeros(depth + 1), np.zeros(0)
        if k > lo:
            a, b, omega_asked, w_asked = chain.unroll(lo, k)
            m = gains.noise_gain * (Q[: k - lo].T @ w_asked)  # the mean of the path given xi
            predict = lagrange_means(past[:predict_order], lam[lo:k], omega_asked)
        factor = gains.gain if i < last else gains.last_gain
        points = [lam[k], *past[: order - 1]] if factor else [lam[k]]
        mix = -factor * lagrange_means(points, lam[lo:hi], omega)[1:]
        n = gains.noise_gain * (Q.T @ w)
        n[1:] = 0.0  # w lies along the first column: the rest is rounding
        t, alpha, sigma = (float(v[k]) for v in (chain.t, chain.alpha, chain.sigma))
        m_, predict_, n_, mix_ = (tuple(v.tolist()) for v in (m, predict, n, mix))
        plan.append(CoarseStep(t, alpha, sigma, a, b, m_, predict_, A, B, n_, mix_))
        past.insert(0, float(lam[k]))
    return plan
