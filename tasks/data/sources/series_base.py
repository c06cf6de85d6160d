"""What a source of series is: settings that open as training and held-out series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from models.common.config import Count, Seed
from models.common.errors import InputError
from tasks.data.sources.base import DataSettings

Length = Annotated[int, Field(strict=True, ge=4, le=4096)]
Values = Literal["levels", "returns", "log_returns"]


@dataclass(frozen=True)
class SeriesSource:
    """``train``, ``holdout``: float64 (n, C, L) in the data's own units; no value of one is in the
    other. ``channels``: names of the C channels.
    """

    title: str
    train: np.ndarray
    holdout: np.ndarray
    channels: tuple[str, ...]


class SeriesSettings(DataSettings):
    """What every kind of series has; a kind adds `kind: Literal[...]`, its own keys and `open`.

    The module of a kind imports nothing heavy: every stage reads the params.
    """

    data_kind: ClassVar[str] = "series"
    resolution: ClassVar[str] = "length"

    length: Length = 32
    """Points in one series, L."""
    holdout: Count = 1000
    """Series kept for evaluation, never seen in training."""
    seed: Seed = 0
    """Of simulated series."""

    def open(self, root: Path) -> SeriesSource:
        """The series; relative paths are below `root`. Raises InputError."""
        raise NotImplementedError


def simulated_source(
    title: str, series: np.ndarray, holdout: int, channels: tuple[str, ...]
) -> SeriesSource:
    """Independent series (n, C, L); the last `holdout` are held out. Raises InputError."""
    if holdout >= len(series):
        raise InputError(
            f"dataset.holdout = {holdout}: expected fewer than dataset.count = {len(series)}"
        )
    return SeriesSource(title, series[:-holdout], series[-holdout:], channels)


def windows_of(
    table: np.ndarray, length: int, stride: int, holdout: int, title: str
) -> tuple[np.ndarray, np.ndarray]:
    """(train, holdout) windows (n, C, length) of one table (T, C) in the order of time.

    Windows begin every `stride` rows, counted from the last row backwards. The last `holdout`
    are held out; training windows end before the first of those begins. Raises InputError where
    there are too few rows.
    """
    starts = np.arange(len(table) - length, -1, -stride)[::-1]
    held = starts[-holdout:]
    train = starts[starts + length <= held[0]] if len(starts) >= holdout else starts[:0]
    if not len(train):
        needed = 2 * length + (holdout - 1) * stride
        raise InputError(
            f"{title}: {len(table)} rows, expected at least {needed} for dataset.holdout = "
            f"{holdout} windows of dataset.length = {length} and one to train on before them; "
            "lower them"
        )
    view = np.lib.stride_tricks.sliding_window_view(table, length, axis=0)  # (T - L + 1, C, L)
    return view[train], view[held]


def transformed(table: np.ndarray, values: Values, names: Sequence[str], key: str) -> np.ndarray:
    """Levels (T, C) as they are, or their returns or log-returns (T - 1, C); InputError, which
    begins with `key`, where these do not exist.
    """
    if values == "levels":
        return table
    bad = table <= 0 if values == "log_returns" else table == 0
    if bad.any():
        row, column = (int(v) for v in np.argwhere(bad)[0])
        wanted = "above 0" if values == "log_returns" else "other than 0"
        raise InputError(
            f"{key}: {names[column]} is {table[row, column]:g} in row {row + 1}, expected values "
            f"{wanted} for dataset.values = {values}; use levels"
        )
    if values == "log_returns":
        return np.diff(np.log(table), axis=0)
    return table[1:] / table[:-1] - 1.0
