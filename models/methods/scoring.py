"""The energy score: a loss whose optimum is a whole law, not its mean.

Squared error along a path ends at the conditional mean: what the teacher's path does beyond its
partial signature is averaged away. A strictly proper scoring rule is minimised by the conditional
law itself. With two draws p, q of the generator, made with extra standard normals e, e', and the
teacher's state y,

    ES = 1/2 d(p, y) + 1/2 d(q, y) - 1/2 d(p, q)                                               (17)
    d(u, v) = (w |u - v|^2 / m + c^2)^(beta / 2) - c^beta,     0 < beta < 2

over vectors of m entries. For c = 0 this is the energy score of Gneiting and Raftery (2007), for
denoisers see De Bortoli et al. (2025, arXiv 2502.02483). It is unbiased from two draws. c > 0
keeps the gradient finite where p = q, as at the start, when the weights on e are zero; it costs no
propriety: s -> (s + c^2)^(beta / 2) is a Bernstein function, so d is still of strictly negative
type (Schoenberg 1938).

For images and series the score is a mean over the whole state, for which it is strictly proper,
and over patches, for each of which it is proper: a distance of whole images sees little of a
single stroke.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.common.errors import InputError

SMOOTHING = 1e-3  # c of (17), in units of the weighted distance


def energy_score(
    p: Tensor,
    q: Tensor,
    y: Tensor,
    weights: Tensor,
    beta: float = 1.0,
    patches: Sequence[int] = (0,),
) -> Tensor:
    """(17), the mean over samples, steps, patches and patch sizes.

    ``p``, ``q``, ``y``: (n, L, C, *space), any number of space axes, none included. ``weights``:
    (L,) >= 0, w of (17), such as the inverse of the state's marginal variance. ``beta``: above 0,
    below 2. ``patches``: edge lengths; 0 is the whole state. Raises InputError for a beta or a
    patch size that does not fit.
    """
    check_beta(beta)
    if not patches:
        raise InputError("method.loss.score_patches = []: expected sizes, 0 for the whole state")
    scores = []
    for size in patches:
        a, b, c = (to_patches(v, size) for v in (p, q, y))
        error = _distance(a, c, weights, beta) + _distance(b, c, weights, beta)
        scores.append(0.5 * (error - _distance(a, b, weights, beta)).mean())
    return torch.stack(scores).mean()


def spread_ratio(p: Tensor, q: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """How far draws lie from one another, over how far they lie from the truth, whole states.

    Arguments as in :func:`energy_score`. 0 where the draws coincide; 1 where they follow the
    truth's law, since then (p, q) and (p, y) have the same joint law. Not differentiated.
    """
    with torch.no_grad():
        a, b, c = (to_patches(v, 0) for v in (p, q, y))
        error = _distance(a, c, weights, 1.0) + _distance(b, c, weights, 1.0)
        return 2.0 * _distance(a, b, weights, 1.0).sum() / error.sum().clamp_min(1e-12)


def to_patches(x: Tensor, size: int) -> Tensor:
    """(n, L, C, *space) -> (n, L, patches, C * size^axes): patches that tile the space axes.

    All channels of a place belong to one patch. ``size`` 0 gives one patch, the whole state. Every
    entry of ``x`` is in exactly one patch. Raises InputError if ``size`` does not divide an axis.
    """
    n, length, channels, *space = x.shape
    if size == 0:
        return x.reshape(n, length, 1, -1)
    if size < 0 or not space or any(edge % size for edge in space):
        raise InputError(
            f"method.loss.score_patches: {size} does not tile states of {tuple(space)}; expected "
            "0 (the whole state) or sizes that divide every axis"
        )
    # (n, L, C, H, W) -> (n, L, C, H / s, s, W / s, s) -> (n, L, H / s, W / s, C, s, s)
    split = x.reshape(n, length, channels, *(v for edge in space for v in (edge // size, size)))
    blocks, inside = range(3, split.ndim, 2), range(4, split.ndim, 2)
    count = 1
    for edge in space:
        count *= edge // size
    return split.permute(0, 1, *blocks, 2, *inside).reshape(n, length, count, -1)


def check_patches(patches: Sequence[int], shape: Sequence[int]) -> None:
    """Raises InputError unless every size tiles states of ``shape`` (C, *space)."""
    for size in patches:
        to_patches(torch.empty(1, 1, *shape), size)


def check_beta(beta: float) -> None:
    """Raises InputError unless 0 < beta < 2; at 2 the score sees the mean alone."""
    if not 0.0 < beta < 2.0:
        raise InputError(
            f"method.loss.score_beta = {beta}: expected above 0 and below 2 (at 2 only the mean "
            "is learnt), such as 1"
        )


def _distance(u: Tensor, v: Tensor, weights: Tensor, beta: float) -> Tensor:
    """d of (17): (n, L, patches, m) twice -> (n, L, patches)."""
    square = (u - v).square().mean(-1) * weights.to(u).view(1, -1, 1)
    smoothed: Tensor = (square + SMOOTHING**2).pow(beta / 2) - SMOOTHING**beta
    return smoothed
