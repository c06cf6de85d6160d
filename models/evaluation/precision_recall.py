"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991).

A manifold is the union of balls around its samples that reach to the k-th nearest other sample.
Precision is the share of generated samples inside the real manifold, recall the share of real ones
inside the generated manifold; each in [0, 1]. Distances in float64, in blocks of rows.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import (
    Estimate,
    Metric,
    MetricOptions,
    Samples,
    bootstrap_counts,
    checked_features,
    chunks,
)


def precision_recall(fake: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Precision and recall of features (n, d) against (m, d); 1 <= neighbours < n, m."""
    options = MetricOptions(neighbours=neighbours)
    sets = Samples(features=fake), Samples(features=real)
    return Precision(sets[1], options)(sets[0]).value, Recall(sets[1], options)(sets[0]).value


class _Manifold(Metric):
    """Shared by both: equal numbers of samples on both sides, and the real manifold's radii.

    Intervals are conditional on the manifold: the samples that are counted are resampled, those
    that span it are not (a repeated sample would shrink its own ball to nothing).
    """

    inputs = frozenset({"features"})
    decimals: ClassVar[int] = 3
    lower_is_better = False
    floor = 1e-3

    def _pair(self, fake: Samples) -> tuple[Tensor, Tensor]:
        few, neighbours = self.options.few, self.options.neighbours
        x, y = checked_features(fake.head(few), self.real.head(few))
        if not 1 <= neighbours < min(len(x), len(y)):
            raise InputError(
                f"neighbours = {neighbours}: expected 1 to {min(len(x), len(y)) - 1}, below the "
                "samples"
            )
        return x.double(), y.double()

    def _share(self, inside: Tensor, seed: int) -> Estimate:
        counts = bootstrap_counts(len(inside), self.options.resamples, seed)
        return Estimate(
            [float(inside.double().mean()), *(counts[1:] @ inside.numpy() / len(inside))]
        )


class Precision(_Manifold):
    """Fidelity: the share of generated samples that look like real ones."""

    name = "precision"
    title = "Precision"
    _radii: Tensor | None = None

    def __call__(self, fake: Samples) -> Estimate:
        x, y = self._pair(fake)
        if self._radii is None:  # of the real set, which stays the same
            self._radii = radii(y, self.options.neighbours)
        return self._share(inside(x, y, self._radii), self.options.seed + 1)


class Recall(_Manifold):
    """Variety: the share of real samples that the generated ones come near to."""

    name = "recall"
    title = "Recall"

    def __call__(self, fake: Samples) -> Estimate:
        x, y = self._pair(fake)
        return self._share(inside(y, x, radii(x, self.options.neighbours)), self.options.seed)


def inside(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Whether each of points (n, d) lies in a ball around centres (m, d) of radius (m,)."""
    found = [
        (_distances(points[rows], centres) <= radius).any(1)
        for rows in chunks(len(points), len(centres))
    ]
    return torch.cat(found)


def radii(x: Tensor, neighbours: int) -> Tensor:
    """The distance (n,) of each sample of x (n, d) to its k-th nearest other sample."""
    # The nearest sample of all is the sample itself, at distance 0.
    found = [
        _distances(x[rows], x).kthvalue(neighbours + 1, dim=1).values
        for rows in chunks(len(x), len(x))
    ]
    return torch.cat(found)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # Through a matrix product, |x|^2 - 2 x.y + |y|^2 loses the digits that decide who is inside.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
