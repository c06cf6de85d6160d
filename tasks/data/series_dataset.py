"""Series of any source: checked, with the training split's mean and std per channel."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from models.common.errors import InputError
from tasks.data.labels import NO_LABEL
from tasks.data.sources import SeriesSettings, SeriesSource
from tasks.data.splits import SPLITS
from tasks.utils.failpoints import reach

STEADY = 1e-6  # a std below this part of the values is lost in float32

logger = logging.getLogger(__name__)


def write_series(settings: SeriesSettings, root: Path, folder: Path) -> dict[str, Any]:
    """Write, of train and holdout, *_series.npy float32 (n, C, L) in the data's own units and
    *_labels.npy int64 (n,), all -1. Returns what the manifest says of them.

    Raises InputError for values that are not finite and for channels that do not move.
    """
    source = settings.open(root)
    parts = {split: _checked(getattr(source, split), source) for split in SPLITS}
    reach("dataset.read")
    scaling = _scaling(parts["train"], source)
    for split, series in parts.items():
        np.save(folder / f"{split}_series.npy", series, allow_pickle=False)
        labels = np.full(len(series), NO_LABEL, dtype=np.int64)
        np.save(folder / f"{split}_labels.npy", labels, allow_pickle=False)
    counts = {split: len(series) for split, series in parts.items()}
    what = "dataset: %d train, %d holdout of %s; channels %s"
    logger.info(what, *counts.values(), source.title, ", ".join(source.channels))
    return {
        "source": source.title,
        "shape": list(parts["train"].shape[1:]),
        "counts": counts,
        "class_names": [],
        "unlabelled": sum(counts.values()),
        "captions": False,
        "channels": list(source.channels),
        "scaling": scaling,
    }


def _checked(series: np.ndarray, source: SeriesSource) -> np.ndarray:
    """float32 (n, C, L), contiguous."""
    if series.ndim != 3 or series.shape[1] != len(source.channels) or not len(series):
        raise InputError(
            f"{source.title}: series of shape {series.shape}, expected (n, "
            f"{len(source.channels)}, L), n at least 1"
        )
    with np.errstate(over="ignore"):
        small = np.ascontiguousarray(series, dtype=np.float32)
    bad = ~np.isfinite(small)
    if bad.any():
        row, channel, time = (int(v) for v in np.argwhere(bad)[0])
        raise InputError(
            f"{source.title}: {source.channels[channel]} is {series[row, channel, time]:g} at "
            f"point {time} of a series, expected finite values within float32"
        )
    return small


def _scaling(train: np.ndarray, source: SeriesSource) -> dict[str, list[float]]:
    """Mean and std per channel, over series and points."""
    wide = train.astype(np.float64)
    mean, std = wide.mean(axis=(0, 2)), wide.std(axis=(0, 2))
    for name, moved, largest in zip(
        source.channels, std, np.abs(wide).max(axis=(0, 2)), strict=True
    ):
        if moved <= STEADY * largest:
            raise InputError(
                f"{source.title}: {name} is constant in the training series (std {moved:.3g}, "
                f"values up to {largest:.3g}), expected one that moves; leave the column out"
            )
    return {"mean": mean.tolist(), "std": std.tolist()}
