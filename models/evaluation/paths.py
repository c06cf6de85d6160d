"""Error along paths: generated states beside the teacher's on the same noise."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import Estimate, Interval, Metric, Samples, bootstrap_counts


def path_rmse(
    states: Tensor, reference: Tensor, resamples: int = 0, seed: int = 0
) -> list[Interval]:
    """RMSE over paths and pixels after each coarse step 1..N, of states (n, N + 1, ...) of the same
    noise.

    The interval resamples whole paths.
    """
    return [draw.interval() for draw in _errors(states, reference, resamples, seed)]


class PathRMSE(Metric):
    """RMSE to the teacher's last state, on the teacher's own start noise and Brownian path."""

    name = "path_rmse"
    title = "Path RMSE"
    lower_is_better = True
    inputs = frozenset({"paths"})
    decimals = 4

    def __call__(self, fake: Samples) -> Estimate:
        if fake.paths is None or self.real.paths is None:
            raise InputError("no paths: expected states (p, N + 1, ...) for both")
        options = self.options
        return _errors(fake.paths, self.real.paths, options.resamples, options.seed)[-1]


def _errors(states: Tensor, reference: Tensor, resamples: int, seed: int) -> list[Estimate]:
    if states.shape != reference.shape:
        raise InputError(
            f"paths of shape {tuple(states.shape)}: expected {tuple(reference.shape)} as in the "
            "cache"
        )
    errors = (states - reference).double().square().flatten(2).mean(2)[:, 1:].numpy()
    counts = bootstrap_counts(len(errors), resamples, seed)
    return [Estimate(column) for column in np.sqrt(counts @ errors / len(errors)).T]
