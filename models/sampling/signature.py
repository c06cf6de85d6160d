"""Partial signatures of the Brownian path that drives the chain.

In coordinates x / alpha step k adds g_k z_k. On an interval take the time-augmented path (u, W),
du_k = g_k^2 and dW_k = g_k z_k, linear between grid points: u is the quadratic variation of W. Of
its signature (Chen 1957; Lyons 1998) keep the words with exactly one Brownian letter, which are
linear in z:

    S^{0..0j} = int (u - u_i)^p / p! dW^j = sum_k c_p[k] z_k^j,   p = 0..m-1
    (4)
    c_p[k] = g_k * mean over cell k of (u - u_i)^p / p!

``iisignature`` compiles the weights: the signature of the path whose increment is one in cell k
alone has c_p[k] / g_k as its word 0..01. The features of an interval are the columns [w, c_0, ..,
c_{m-1}] (w from (2)) made orthonormal, F = Q R with a positive diagonal, so that

    xi = Q^T z ~ N(0, I) exactly, independent over pixels,      n = |w| xi_0
    (5)

and at inference m + 1 standard normals per pixel *are* the partial signature. A column that depends
on those before it is dropped: its xi is identically zero. By Chen's identity the features of a long
interval follow from its parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import iisignature
import numpy as np
import torch
from torch import Tensor

from models.sampling.chain import Chain, unroll
from models.sampling.grids import places

DEPENDENT = 1e-7


@dataclass(frozen=True)
class Basis:
    """Features of one interval [lo, hi).

    ``Q``: (hi - lo, m + 1), orthonormal columns, zero where dropped; ``R``: (m + 1, m + 1) upper
    triangular with [w, c_0 / scale_0, ..] = Q R; ``scale``: (m + 1,) units in which the columns
    were measured.
    """

    lo: int
    hi: int
    Q: np.ndarray
    R: np.ndarray
    scale: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(m + 1,) bool: which features are not dropped."""
        return np.asarray(np.abs(self.Q).sum(0) > 0)


def signature_weights(chain: Chain, lo: int, hi: int, depth: int) -> np.ndarray:
    """c_p[k] of (4), (depth, hi - lo), compiled with iisignature in float64; u in units of the
    interval's length.

    Dividing u by its total scales row p by a constant and leaves the span alone; high powers stay
    in range.
    """
    g = chain.g[lo:hi]
    total = float((g**2).sum()) or 1.0
    time = np.append(0.0, np.cumsum(g**2)) / total
    count = hi - lo
    paths = np.zeros((count, count + 1, 2))
    paths[:, :, 0] = time
    for k in range(count):
        paths[k, k + 1 :, 1] = 1.0
    signature = iisignature.sig(paths, depth)
    return np.asarray(np.stack([signature[:, _word(p)] for p in range(depth)]) * g)


def _word(p: int) -> int:
    """Position of the word 0..01 with p zeros in iisignature's list over two letters, levels 1, 2,
    ..
    """
    return (1 << (p + 1)) - 1


def columns(chain: Chain, lo: int, hi: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """[w, c_0, .., c_{m-1}] as (hi - lo, m + 1), each over its norm, and the norms (1 for a zero
    column).
    """
    raw = np.column_stack([unroll(chain, lo, hi).w, *signature_weights(chain, lo, hi, depth)])
    scale = np.linalg.norm(raw, axis=0)
    scale[scale == 0] = 1.0
    return raw / scale, scale


def basis(chain: Chain, lo: int, hi: int, depth: int) -> Basis:
    """Orthonormal features of one interval: modified Gram-Schmidt, twice, in float64."""
    raw, scale = columns(chain, lo, hi, depth)
    Q, R = np.zeros_like(raw), np.zeros((depth + 1, depth + 1))
    for j in range(depth + 1):
        rest = raw[:, j].copy()
        for _ in range(2):
            along = Q[:, :j].T @ rest
            R[:j, j] += along
            rest -= Q[:, :j] @ along
        length = float(np.linalg.norm(rest))
        if length > DEPENDENT:
            Q[:, j], R[j, j] = rest / length, length
    return Basis(lo, hi, Q, R, scale)


def bases(chain: Chain, grid: np.ndarray, depth: int) -> list[Basis]:
    """One basis per coarse interval of ``grid`` (N + 1 fine indices)."""
    return [basis(chain, int(lo), int(hi), depth) for lo, hi in itertools.pairwise(grid)]


def feature_matrix(parts: Sequence[Basis]) -> np.ndarray:
    """(N, m + 1, K) with xi_i = M_i z: the one matrix that is applied while the teacher runs."""
    K, width = parts[-1].hi, parts[0].Q.shape[1]
    out = np.zeros((len(parts), width, K))
    for i, part in enumerate(parts):
        out[i, :, part.lo : part.hi] = part.Q.T
    return out


def chen_join(chain: Chain, parts: Sequence[Basis], depth: int) -> np.ndarray:
    """(m + 1, r, m + 1): xi of the interval that spans the r ``parts``, as a linear map of theirs.

    Chen's identity for one-Brownian words: c_p over the whole is, on part j that starts after time
    d_j, sum_q d_j^(p-q) / (p-q)! c_q of that part; w is the part's own w times the product of a_k
    after it.
    """
    whole = basis(chain, parts[0].lo, parts[-1].hi, depth)
    g2 = chain.g**2
    total = float(g2[whole.lo : whole.hi].sum()) or 1.0
    out = np.zeros((depth + 1, len(parts), depth + 1))
    for j, part in enumerate(parts):
        own = float(g2[part.lo : part.hi].sum()) or 1.0
        before = float(g2[whole.lo : part.lo].sum()) / total
        raw = part.R * part.scale
        moved = np.zeros_like(raw)
        moved[:, 0] = raw[:, 0] * float(np.prod(chain.a[part.hi : whole.hi]))
        for p in range(depth):
            for q in range(p + 1):
                moved[:, p + 1] += (
                    before ** (p - q) / math.factorial(p - q) * (own / total) ** q * raw[:, q + 1]
                )
        out[:, j] = _solve(whole, moved / whole.scale)
    return out


def join_maps(chain: Chain, parts: Sequence[Basis], intervals: int) -> np.ndarray:
    """The maps of :func:`chen_join` for N = ``intervals`` between :func:`places` of the ``parts``,
    for :func:`joined`.

    (N, m + 1, r, m + 1) where each spans r consecutive parts; (N, m + 1, parts, m + 1), zero at
    others' parts, where N does not divide their number.
    """
    total, depth = len(parts), parts[0].Q.shape[1] - 1
    spans = list(itertools.pairwise(places(total, intervals).tolist()))
    maps = [chen_join(chain, parts[lo:hi], depth) for lo, hi in spans]
    if total % intervals == 0:
        return np.stack(maps)
    out = np.zeros((intervals, depth + 1, total, depth + 1))
    for i, (lo, hi) in enumerate(spans):
        out[i, :, lo:hi] = maps[i]
    return out


def joined(xi: Tensor, maps: Tensor) -> Tensor:
    """Features (n, parts, m + 1, *shape) joined to (n, N, m + 1, *shape) by :func:`join_maps`."""
    intervals, _, every, _ = maps.shape
    if every == 1:
        return xi
    if intervals * every != xi.shape[1]:  # spans of unequal length
        return torch.einsum("iprq,nrq...->nip...", maps.to(xi), xi)
    parts = xi.reshape(len(xi), intervals, every, *xi.shape[2:])
    return torch.einsum("iprq,nirq...->nip...", maps.to(xi), parts)


def _solve(whole: Basis, moved: np.ndarray) -> np.ndarray:
    """Rows of the map: xi_whole = R^-T (columns of whole), by forward substitution over kept
    features.
    """
    xi = np.zeros_like(moved.T)
    for j in np.flatnonzero(whole.kept):
        xi[j] = (moved[:, j] - whole.R[:j, j] @ xi[:j]) / whole.R[j, j]
    return xi
