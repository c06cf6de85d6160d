"""Exact laws of simulated datasets."""

from __future__ import annotations

from models.evaluation.series.gaussian_laws import GaussianLaw, ar1_law, ou_law
from tasks.data.sources.base import DataSettings
from tasks.data.sources.processes import AR1Dataset, OUDataset


def law_of(dataset: DataSettings) -> GaussianLaw | None:
    """The law of the series in their own units; None for images and where it is not Gaussian."""
    if isinstance(dataset, AR1Dataset):
        return ar1_law(dataset.length, dataset.phi, dataset.noise)
    if isinstance(dataset, OUDataset):
        of = {"theta": dataset.theta, "std": dataset.sigma, "dt": dataset.dt, "mu": dataset.mu}
        if dataset.start is None:
            return ou_law(dataset.length, **of)
        # the start is one dt before the first point
        whole = ou_law(dataset.length + 1, **of, start=dataset.start)
        return GaussianLaw(whole.mean[1:], whole.covariance[1:, 1:])
    return None
