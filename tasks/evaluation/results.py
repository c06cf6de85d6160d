"""The figures of one evaluation, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Interval


@dataclass(frozen=True)
class Row:
    """One line of the table, of so many `images`. `group`: student, untrained, baseline, other,
    teacher or real; `nfe`: None for real.
    """

    sampler: str
    title: str
    group: str
    nfe: int | None
    kid: Interval
    frechet: float
    precision: float
    recall: float
    ms_per_image: float | None
    mean: float
    std: float
    images: int

    @property
    def step_key(self) -> str:
        return "full" if self.nfe is None or self.group == "teacher" else f"nfe{self.nfe}"

    @property
    def key(self) -> str:
        return f"{self.sampler}.{self.step_key}"


@dataclass
class Result:
    """All figures of one evaluation: `samples` generated images against `real` ones.

    `few`: how many of each set make the figures that depend on the number, Frechet distance,
    precision and recall. By row key: `images` uint8 (n, C, H, W), `spacing` of a baseline, `calls`
    of the network where not nfe, `flops` per image (multiplications and additions of matrix
    products and convolutions, as torch counts them); `path_images` are made along the cached paths.
    By (generator, nfe): `path_error` after each coarse step. `differences`: paired KID differences
    of the student, by "rival.nfe10"; below 0 the student is better. `diagnostics`: what was
    measured before the student was trained, from student.json.
    """

    features: str
    samples: int
    real: int
    few: int
    rows: list[Row] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    spacing: dict[str, str] = field(default_factory=dict)
    path_error: dict[tuple[str, int], list[Interval]] = field(default_factory=dict)
    path_images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    differences: dict[str, Interval] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)

    def baselines(self, nfe: int) -> list[Row]:
        """Training-free samplers at this number of steps, the best KID first."""
        found = [row for row in self.rows if row.group == "baseline" and row.nfe == nfe]
        return sorted(found, key=lambda row: row.kid.value)

    def calls_of(self, row: Row) -> int | None:
        """Network calls per image."""
        return self.calls.get(row.key, row.nfe)

    @property
    def nfe(self) -> list[int]:
        return sorted(
            {row.nfe for row in self.rows if row.group == "student" and row.nfe}, reverse=True
        )

    @property
    def teacher(self) -> Row:
        return next(row for row in self.rows if row.group == "teacher")
