"""Coarse-step coefficients of the untrained Sig-DEG generator: an exponential integrator matched to
the teacher's chain.

Dbar_i of (2) is a weighted mean of denoised images along the path. Two things are known about it
for free:

- how denoised images moved before: the polynomial in lambda = log(alpha / sigma) through D_i,
  D_{i-1}, .. is
  averaged with the chain's own weights omega (7), which for small steps is the multistep rule
  D + h_i / (2 h_{i-1}) (D - D_prev);
- where this path goes: with eta = 1, D is a martingale along the chain (dD = dD/dp dW in p = x
  alpha / sigma^2), so
  what happens *inside* the interval is noise that no history predicts but that xi knows. The
  network is therefore
  asked not at Y_i but at a state X of the path further on (6): the mean of x_kappa given Y_i, xi_i
  and an
  extrapolated Dbar. One network call then sees the first-order response to the path signature
  without any
  derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.methods.sigdeg.pipeline import Step
from models.sampling.chain import Chain, unroll
from models.sampling.signature import Basis


def lagrange_means(points: Sequence[float], at: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_k weights[k] L_j(at[k]) for the Lagrange basis L_j on ``points``; sums to
    sum(weights).
    """
    out = np.empty(len(points))
    for j, own in enumerate(points):
        basis = np.ones_like(at)
        for i, other in enumerate(points):
            if i != j:
                basis = basis * (at - other) / (own - other)
        out[j] = float((weights * basis).sum())
    return out


def query_index(chain: Chain, lo: int, hi: int, look_ahead: float) -> int:
    """The fine level at which the network is asked: ``look_ahead`` of the interval's half-log-SNR
    further on.
    """
    lam = _finite_half_logsnr(chain)
    top = lam[min(hi, chain.steps - 1)]
    return lo + int(np.abs(lam[lo:hi] - (lam[lo] + look_ahead * (top - lam[lo]))).argmin())


def make_plan(
    chain: Chain,
    parts: Sequence[Basis],
    order: int = 2,
    look_ahead: float | Sequence[float] = 0.0,
    predict_order: int = 1,
    gain: float = 1.0,
    last_gain: float = 0.0,
    noise_gain: float = 1.0,
) -> list[Step]:
    """Steps for the intervals of ``parts``.

    ``order``: points in (7); ``look_ahead``: 0 (ask at Y_i) up to 1, or one each;
    ``predict_order``: points of the extrapolation in (6). ``gain`` scales the weights q of (7),
    ``last_gain`` those of the last step: 1 is the rule, more gives back contrast that coarse steps
    lose, 0 in the last step keeps its result a plain denoised image. ``noise_gain`` scales the
    chain's noise, 1 being the teacher's law.
    """
    lam = _finite_half_logsnr(chain)
    ahead = (
        [float(look_ahead)] * len(parts)
        if isinstance(look_ahead, (int, float))
        else list(look_ahead)
    )
    asked: list[float] = []
    steps = []
    for i, part in enumerate(parts):
        whole = unroll(chain, part.lo, part.hi)
        k = query_index(chain, part.lo, part.hi, ahead[i])
        a, b, m, predict = 1.0, 0.0, np.zeros(part.Q.shape[1]), np.zeros(0)
        if k > part.lo:
            before = unroll(chain, part.lo, k)
            a, b = before.A, before.B
            m = noise_gain * (part.Q[: k - part.lo].T @ before.w)
            past = asked[:predict_order]
            predict = lagrange_means(past, lam[part.lo : k], before.omega) if past else predict
        factor = gain if i < len(parts) - 1 else last_gain
        points = [lam[k], *asked[: order - 1]] if factor else [lam[k]]
        mix = -factor * lagrange_means(points, lam[part.lo : part.hi], whole.omega)[1:]
        steps.append(
            Step(
                t=float(chain.levels.t[k]),
                alpha=float(chain.levels.alpha[k]),
                sigma=float(chain.levels.sigma[k]),
                a=a,
                b=b,
                m=tuple(map(float, m)),
                predict=tuple(map(float, predict)),
                A=whole.A,
                B=whole.B,
                n=tuple(map(float, noise_gain * (part.Q.T @ whole.w))),
                mix=tuple(map(float, mix)),
                width=float(lam[min(part.hi, chain.steps - 1)] - lam[part.lo]) / 4.0,
                kept=tuple(map(float, part.kept)),
            )
        )
        asked.insert(0, lam[k])
    return steps


def _finite_half_logsnr(chain: Chain) -> np.ndarray:
    lam = chain.half_logsnr.copy()
    if not np.isfinite(lam[0]):
        lam[0] = 2 * lam[1] - lam[2] if chain.steps > 2 else lam[1] - 1.0
    return lam
