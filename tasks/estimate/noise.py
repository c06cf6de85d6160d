"""How long the noise of teacher paths takes: drawn number by number, and joined to its features."""

from __future__ import annotations

from tasks.config.trajectories import Trajectories

# CPU seconds, as measured: of a standard normal, of a multiplication with its addition
NORMAL, PRODUCT = 8e-9, 1e-10
PATH = 0.012  # of a path's generators, joining and writing, whatever its size


def noise_seconds(spec: Trajectories, entries: int) -> float:
    """CPU seconds for all paths of states with so many ``entries``."""
    features = spec.intervals * (spec.depth + 1) if spec.eta else 0
    drawn = spec.steps + 1 + features
    # the matrix of features is applied twice, by (5a) of models/sampling/trajectories.py
    joined = 2 * features * spec.steps
    each = PATH + entries * (drawn * NORMAL + joined * PRODUCT)
    return (spec.train + spec.validation) * each
