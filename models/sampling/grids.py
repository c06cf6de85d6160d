"""Coarse time grids on the teacher's fine chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.common.errors import InputError
from models.sampling.chain import Chain


def coarse_grid(
    chain: Chain, intervals: int, kind: str = "index", points: Sequence[int] = ()
) -> np.ndarray:
    """N + 1 increasing fine indices from 0 to K.

    ``index``: equal numbers of fine steps; ``logsnr``: equal steps of log-SNR between the finite
    ends of the chain; ``given``: ``points``. Raises InputError if there are more intervals than
    steps or the points are no grid.
    """
    K = chain.steps
    if kind == "given":
        grid = np.asarray(points, dtype=np.int64)
    elif intervals > K:
        raise InputError(
            f"trajectories.intervals = {intervals}: expected at most trajectories.steps = {K}"
        )
    elif kind == "index":
        grid = np.round(np.linspace(0, K, intervals + 1)).astype(np.int64)
    else:
        grid = _logsnr_grid(chain, intervals)
    if len(grid) != intervals + 1 or grid[0] != 0 or grid[-1] != K or np.any(np.diff(grid) <= 0):
        raise InputError(
            f"coarse grid {grid.tolist()}: expected {intervals + 1} increasing indices from 0 to "
            f"{K}"
        )
    return grid


def _logsnr_grid(chain: Chain, intervals: int) -> np.ndarray:
    """Nearest fine levels to equal steps of log-SNR, the last one at clean data; distinct by
    construction.
    """
    K = chain.steps
    finite = chain.half_logsnr[:K].copy()
    if not np.isfinite(finite[0]):
        finite[0] = 2 * finite[1] - finite[2] if K > 2 else finite[1] - 1.0
    wanted = np.linspace(finite[0], finite[-1], intervals + 1)
    grid: np.ndarray = np.abs(finite[None] - wanted[:, None]).argmin(1)
    grid[-1] = K
    return _distinct(grid)


def _distinct(grid: np.ndarray) -> np.ndarray:
    """The grid with coinciding inner points moved apart by as little as needed."""
    last = len(grid) - 1
    for i in range(1, last):
        grid[i] = max(grid[i], grid[i - 1] + 1)
    for i in range(last - 1, 0, -1):
        grid[i] = min(grid[i], grid[i + 1] - 1)
    return grid


def adaptive_grid(movement: np.ndarray, intervals: int, exponent: float = 0.25) -> np.ndarray:
    """N + 1 fine indices that share the teacher's own movement out evenly.

    ``movement``: (K - 1,) mean squared change of the denoised image from fine step k to k + 1,
    measured on pilot paths. Points are equal quantiles of cumulated movement^exponent. Where the
    denoised image stands still (pure noise, almost clean) one coarse step goes far; 1/4 was the
    best of 1/4, 1/3 and 1/2 by KID at 5 and 10 steps (docs/LOG.md).
    """
    K = len(movement) + 1
    if intervals > K:
        raise InputError(
            f"trajectories.intervals = {intervals}: expected at most trajectories.steps = {K}"
        )
    travelled = np.append(0.0, np.cumsum(np.maximum(movement, 1e-12) ** exponent))
    grid = np.abs(travelled / travelled[-1] - np.linspace(0.0, 1.0, intervals + 1)[:, None]).argmin(
        1
    )
    grid[-1] = K
    return _distinct(grid)


def places(total: int, intervals: int) -> np.ndarray:
    """(n + 1,) increasing places from 0 to N in a grid of N = ``total`` intervals, where n =
    ``intervals`` begin and end: every r-th if n divides N, else the nearest to i N / n.

    Raises InputError for n < 1 or n > N.
    """
    if not 1 <= intervals <= total:
        raise InputError(
            f"method.nfe {intervals}: expected 1 to {total}, the cached grid's "
            "trajectories.intervals"
        )
    # i N / n are at least 1 apart, so that rounding halves up keeps them apart
    return (2 * np.arange(intervals + 1) * total + intervals) // (2 * intervals)


def subgrid(grid: np.ndarray, intervals: int) -> np.ndarray:
    """The points of a fine-enough grid at :func:`places`."""
    return grid[places(len(grid) - 1, intervals)]
