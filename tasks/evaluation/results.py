"""The figures of one evaluation, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.base import Interval
from models.evaluation.series.gaussian_laws import LawErrors


@dataclass(frozen=True)
class SamplerKey:
    """A sampler at a number of steps; `nfe` None: the teacher's full run, or real images."""

    name: str
    nfe: int | None = None

    @property
    def steps(self) -> str:
        """The number of steps as metrics.json has it: "nfe10", or "full"."""
        return "full" if self.nfe is None else f"nfe{self.nfe}"

    @property
    def label(self) -> str:
        """For file names: "student_nfe10"."""
        return f"{self.name}_{self.steps}"


@dataclass(frozen=True)
class Column:
    """One figure of the table: a metric, in the features of one extractor where it needs any.

    `name` is the figure's name in files; `title` its heading; `lower_is_better` None where it only
    describes.
    """

    name: str
    title: str
    features: str | None
    lower_is_better: bool | None
    shows_interval: bool
    decimals: int

    @property
    def heading(self) -> str:
        return self.title if self.features is None else f"{self.title}, {self.features}"


@dataclass(frozen=True)
class Row:
    """One line of the table, of so many `images`.

    `group`: student, untrained, baseline, other, teacher or real; `nfe`: steps, None for real;
    `figures` by the name of their column.
    """

    key: SamplerKey
    title: str
    group: str
    nfe: int | None
    figures: dict[str, Interval]
    ms_per_image: float | None
    images: int

    @property
    def sampler(self) -> str:
        return self.key.name

    def __getitem__(self, column: str) -> Interval:
        return self.figures[column]


@dataclass
class Result:
    """All figures of one evaluation: `samples` generated images against `real` ones.

    `data`: images or series. What is said of images holds for series; they are kept as float32
    (n, C, L) in their own units. `real_data`: the real series, at most as many as are kept of a
    sampler; `channels`: their names; `law`: errors to the exact law by sampler, where it is known.

    `columns`: the figures by name; `criterion`: the name of the one that decides. `few`: how many
    of each set make the figures that depend on the number. By sampler: the first `images` uint8
    (n, C, H, W), `spacing` of a baseline, `calls` of the network where not nfe, `flops` per image
    (multiplications and additions of matrix products and convolutions, as torch counts them),
    `left_out`: why a baseline has no figures; `path_images` are made along the cached paths;
    `path_error` after each coarse step. `differences`: paired differences of the criterion, student
    minus rival, by (student, rival). `diagnostics`: what was measured before the student was
    trained, from student.json. `content`: digests of what the figures depend on. `load_back`: the
    record of opening the student folder elsewhere. `against`: "real", or "teacher" where there is
    no dataset and `real` are the teacher's own images; `prompts`: of the first images.
    """

    features: str
    samples: int
    real: int
    few: int
    columns: dict[str, Column] = field(default_factory=dict)
    criterion: str = "kid"
    rows: list[Row] = field(default_factory=list)
    calls: dict[SamplerKey, int] = field(default_factory=dict)
    flops: dict[SamplerKey, int] = field(default_factory=dict)
    images: dict[SamplerKey, NDArray[Any]] = field(default_factory=dict)
    spacing: dict[SamplerKey, str] = field(default_factory=dict)
    left_out: dict[SamplerKey, str] = field(default_factory=dict)
    path_error: dict[SamplerKey, list[Interval]] = field(default_factory=dict)
    path_images: dict[SamplerKey, NDArray[Any]] = field(default_factory=dict)
    differences: dict[tuple[SamplerKey, SamplerKey], Interval] = field(default_factory=dict)
    data: str = "images"
    channels: tuple[str, ...] = ()
    real_data: NDArray[np.float32] | None = None
    law: dict[SamplerKey, LawErrors] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    load_back: dict[str, Any] = field(default_factory=dict)
    against: str = "real"
    prompts: tuple[str, ...] | None = None

    @property
    def one(self) -> str:
        """What one sample is called: image or series."""
        return "image" if self.data == "images" else "series"

    def row(self, name: str, nfe: int | None = None) -> Row:
        key = SamplerKey(name, nfe)
        return next(row for row in self.rows if row.key == key)

    @property
    def column(self) -> Column:
        """The criterion's."""
        return self.columns[self.criterion]

    def score(self, row: Row) -> Interval:
        """The row's figure by which samplers are ranked."""
        return row.figures[self.criterion]

    def cost(self, row: Row) -> float:
        """The score, turned so that less is better."""
        value = self.score(row).value
        return value if self.column.lower_is_better else -value

    def ranked(self, rows: Iterable[Row]) -> list[Row]:
        """The best first."""
        return sorted(rows, key=self.cost)

    def baselines(self, nfe: int) -> list[Row]:
        """Training-free samplers at this number of steps, the best first."""
        return self.ranked(r for r in self.rows if r.group == "baseline" and r.nfe == nfe)

    def calls_of(self, row: Row) -> int | None:
        """Network calls per image."""
        return self.calls.get(row.key, row.nfe)

    def difference(self, nfe: int, rival: Row) -> Interval | None:
        """The student at `nfe` steps minus the rival; None if the two were not compared."""
        return self.differences.get((SamplerKey("student", nfe), rival.key))

    def kind(self, gap: Interval) -> str:
        """Whether the student is better, worse, or even: 0 lies in the difference's interval."""
        if gap.low <= 0 <= gap.high:
            return "even"
        return "better" if (gap.high < 0) == bool(self.column.lower_is_better) else "worse"

    @property
    def nfe(self) -> list[int]:
        return sorted(
            {row.nfe for row in self.rows if row.group == "student" and row.nfe}, reverse=True
        )

    @property
    def teacher(self) -> Row:
        return next(row for row in self.rows if row.group == "teacher")
