"""Training-free solvers of the reverse process, written for any noise schedule.

All work on K + 1 levels (alpha_k, sigma_k) that end at clean data, and ask for denoised images
only, ``denoise(x, k) -> x0``: prediction types, clipping, learned variance and guidance are the
teacher's business and cannot differ between solvers. With lambda = log(alpha / sigma), h the step
in lambda and D the denoised image, the exponential integrators share

    x' = sigma' / sigma x + alpha' (1 - e^-h) D + ...                 (deterministic)
    x' = sigma' / sigma e^-h x + alpha' (1 - e^-2h) D + ... + sigma' sqrt(1 - e^-2h) z    (SDE)

Sources: DDPM arXiv 2006.11239, DDIM 2010.02502, DPM-Solver++ 2211.01095, UniPC 2302.04867, DEIS
2204.13902, iPNDM 2202.09778 with 2204.13902, Heun 2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from models.sampling.chain import Chain
from models.teachers.schedule import Levels

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]


def ancestral(denoise: Denoise, levels: Levels, x: Tensor, noise: Noise, eta: float) -> Tensor:
    """The chain of (1), models/sampling/chain.py: eta = 0 is DDIM, eta = 1 is DDPM."""
    chain = Chain(levels, eta)
    for k in range(levels.steps):
        D = denoise(x, k)
        x = float(chain.a[k]) * x + float(chain.b[k]) * D
        if chain.s[k] > 0:
            x = x + float(chain.s[k]) * noise()
    return x


def _lambdas(levels: Levels) -> list[float]:
    """log(alpha / sigma): -inf at pure noise, +inf at clean data."""
    with np.errstate(divide="ignore"):
        return [float(v) for v in np.log(levels.alpha) - np.log(levels.sigma)]


def _ends(levels: Levels, k: int) -> tuple[float, float, float]:
    """alpha and sigma after step k, and sigma before it."""
    return float(levels.alpha[k + 1]), float(levels.sigma[k + 1]), float(levels.sigma[k])


def dpmpp(
    denoise: Denoise, levels: Levels, x: Tensor, noise: Noise, order: int, stochastic: bool = False
) -> Tensor:
    """DPM-Solver++(2M) or (3M), midpoint form; ``stochastic``: its SDE version, order 2 at most.

    The first steps, and the last before clean data, take the order that their history allows.
    """
    lam = _lambdas(levels)
    past: list[Tensor] = []
    for k in range(levels.steps):
        past = [denoise(x, k), *past[: order - 1]]
        alpha, sigma, before = _ends(levels, k)
        h = lam[k + 1] - lam[k]
        shrink = math.exp(-h)
        allowed = min(order, len(past), levels.steps - k)
        D = past[0]
        if allowed > 1 and math.isfinite(lam[k - 1]):
            ratio = (lam[k] - lam[k - 1]) / h
            slope = (past[0] - past[1]) / ratio
            if allowed == 2 or not math.isfinite(lam[k - 2]):
                D = D + 0.5 * slope
            else:
                ratio_2 = (lam[k - 1] - lam[k - 2]) / h
                bend = (slope - (past[1] - past[2]) / ratio_2) / (ratio + ratio_2)
                first = (shrink - 1) / h + 1
                second = (shrink - 1 + h) / h**2 - 0.5
                D = D + (first * (slope + ratio * bend) - second * bend) / (1 - shrink)
        if not stochastic:
            x = sigma / before * x + alpha * (1 - shrink) * D
            continue
        x = sigma / before * shrink * x + alpha * (1 - shrink**2) * D
        if sigma > 0:
            x = x + sigma * math.sqrt(1 - shrink**2) * noise()
    return x


def unipc(denoise: Denoise, levels: Levels, x: Tensor, noise: Noise) -> Tensor:
    """UniPC of order 2, B(h) = e^h - 1 ("bh2"): each call first corrects the step before it."""
    lam = _lambdas(levels)
    D: list[Tensor] = []
    came_from: Tensor | None = None
    used = 0  # order of the step before
    for k in range(levels.steps):
        new = denoise(x, k)
        if came_from is not None and math.isfinite(lam[k - 1]):
            x = _unipc_step(levels, lam, k, came_from, D, used, new)
        D = [new, *D[:1]]
        used = min(2, len(D), levels.steps - k)
        if used == 2 and not math.isfinite(lam[k - 1]):
            used = 1
        came_from = x
        x = _unipc_step(levels, lam, k + 1, x, D, used, None)
    return x


def _unipc_step(
    levels: Levels, lam: list[float], to: int, x: Tensor, D: list[Tensor], order: int,
    new: Tensor | None,
) -> Tensor:  # fmt: skip
    """The step to level ``to``; ``new``, the denoised image there, makes it the corrector."""
    alpha, sigma, before = _ends(levels, to - 1)
    h = lam[to] - lam[to - 1]
    b = math.expm1(-h)  # both phi_1 and B of bh2
    x = sigma / before * x - alpha * b * D[0]
    if not math.isfinite(h):
        return x  # clean data
    slope = None
    if order == 2:
        ratio = (lam[to - 2] - lam[to - 1]) / h
        slope = (D[1] - D[0]) / ratio
    if new is None:
        return x if slope is None else x - alpha * b * 0.5 * slope
    if slope is None:
        return x - alpha * b * 0.5 * (new - D[0])
    # [[1, 1], [ratio, 1]] weights = phi
    phi_2 = b / -h - 1
    phi = np.array([phi_2, 2 * (phi_2 / -h - 0.5)]) / b
    weights = np.linalg.solve(np.array([[1.0, 1.0], [ratio, 1.0]]), phi)
    return x - alpha * b * (float(weights[0]) * slope + float(weights[1]) * (new - D[0]))


def _noises(x: Tensor, D: Tensor, levels: Levels, k: int) -> Tensor:
    return (x - float(levels.alpha[k]) * D) / float(levels.sigma[k])


def _along_noise(x: Tensor, D: Tensor, eps: Tensor, levels: Levels, k: int) -> Tensor:
    """x / alpha moved by (sigma' / alpha' - sigma / alpha) eps; D is used at pure noise only."""
    alpha, sigma = float(levels.alpha[k]), float(levels.sigma[k])
    clean = D if alpha == 0 else (x - sigma * eps) / alpha
    return float(levels.alpha[k + 1]) * clean + float(levels.sigma[k + 1]) * eps


ADAMS_BASHFORTH = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12),
                   (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # fmt: skip


def ipndm(denoise: Denoise, levels: Levels, x: Tensor, noise: Noise, order: int) -> Tensor:
    """Improved PNDM: Adams-Bashforth on the noise with constant weights, order 1 to 4."""
    past: list[Tensor] = []
    for k in range(levels.steps):
        D = denoise(x, k)
        past = [_noises(x, D, levels, k), *past[: order - 1]]
        weights = ADAMS_BASHFORTH[len(past) - 1]
        eps = sum((w * e for w, e in zip(weights, past, strict=True)), x.new_zeros(()))
        x = _along_noise(x, D, eps, levels, k)
    return x


def deis(denoise: Denoise, levels: Levels, x: Tensor, noise: Noise, order: int) -> Tensor:
    """tAB-DEIS: the noise is interpolated in log(sigma / alpha), its integral is exact."""
    lam = _lambdas(levels)
    past: list[Tensor] = []
    for k in range(levels.steps):
        D = denoise(x, k)
        past = [_noises(x, D, levels, k), *past[: order - 1]]
        nodes = [-lam[k - i] for i in range(min(len(past), levels.steps - k))]
        nodes = [node for node in nodes if math.isfinite(node)] or nodes[:1]
        if len(nodes) == 1:
            x = _along_noise(x, D, past[0], levels, k)
            continue
        weights = _lagrange_integrals(nodes, -lam[k], -lam[k + 1])
        moved = sum((w * e for w, e in zip(weights, past, strict=False)), x.new_zeros(()))
        x = float(levels.alpha[k + 1]) * (x / float(levels.alpha[k]) + moved)
    return x


def _lagrange_integrals(nodes: list[float], start: float, stop: float) -> list[float]:
    """Integrals over rho = e^u, u from ``start`` to ``stop``, of the Lagrange polynomials in u."""
    found = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        polynomial = np.poly1d([1.0])
        for other in others:
            polynomial *= np.poly1d([1.0, -other]) / (node - other)
        found.append(_times_exp(polynomial, stop) - _times_exp(polynomial, start))
    return found


def _times_exp(polynomial: np.poly1d, u: float) -> float:
    """The antiderivative of p(u) e^u, e^u (p - p' + p'' ...), at u; 0 at -inf."""
    if u == -math.inf:
        return 0.0
    total, sign = 0.0, 1.0
    while True:
        total += sign * float(polynomial(u))
        if polynomial.order == 0:
            return total * math.exp(u)
        polynomial, sign = polynomial.deriv(), -sign


def heun(
    denoise: Denoise, levels: Levels, x: Tensor, noise: Noise, euler_first: bool = False
) -> Tensor:
    """Heun's method on the noise, two calls a step; one in the last, and where ``euler_first``."""
    for k in range(levels.steps):
        D = denoise(x, k)
        eps = _noises(x, D, levels, k)
        ahead = _along_noise(x, D, eps, levels, k)
        if k + 1 < levels.steps and not (k == 0 and euler_first):
            D_end = denoise(ahead, k + 1)
            at_end = _noises(ahead, D_end, levels, k + 1)
            if levels.alpha[k] == 0:  # pure noise: eps is exact there, and D what is not known
                ahead = _along_noise(x, (D + D_end) / 2, eps, levels, k)
            else:
                ahead = _along_noise(x, D, (eps + at_end) / 2, levels, k)
        x = ahead
    return x


def sde_heun(
    denoise: Denoise, levels: Levels, x: Tensor, noise: Noise, factor: float = 1.0,
    euler_first: bool = False,
) -> Tensor:  # fmt: skip
    """Heun's method on the reverse SDE, exact in its linear part: the denoised images at both ends
    of a step are averaged, the noise is the same; ``factor`` scales that noise.
    """
    lam = _lambdas(levels)
    for k in range(levels.steps):
        alpha, sigma, before = _ends(levels, k)
        shrink = math.exp(lam[k] - lam[k + 1])
        kept = sigma / before * shrink * x
        if sigma > 0:
            kept = kept + factor * sigma * math.sqrt(1 - shrink**2) * noise()
        D = denoise(x, k)
        x = kept + alpha * (1 - shrink**2) * D
        if k + 1 < levels.steps and not (k == 0 and euler_first):
            x = kept + alpha * (1 - shrink**2) * (D + denoise(x, k + 1)) / 2
    return x
