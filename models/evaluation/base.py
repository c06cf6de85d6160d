"""What a metric is: one number with an interval for a set of generated samples against real ones.

A metric is bound to one real set, so that what depends on that set alone is computed once:

    metric = KID(Samples(images, features=real_features), MetricOptions(resamples=200))
    estimate = metric(Samples(generated, features=generated_features))
    estimate.value, estimate.low, estimate.high

Estimates of one metric object share their bootstrap resamples, so the difference of two of them is
a paired comparison: `first.minus(second)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.common.errors import InputError

Floats = NDArray[np.float64]
Input = Literal["features", "images", "paths", "prompts", "series"]
INPUTS: tuple[Input, ...] = ("features", "images", "paths", "prompts", "series")


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


class Estimate:
    """A value and its bootstrap resamples.

    `draws` (1 + R,): the value of the sample itself, then R resampled ones; R may be 0.
    """

    def __init__(self, draws: Floats | Sequence[float]) -> None:
        self.draws = np.asarray(draws, dtype=np.float64)

    @property
    def value(self) -> float:
        return float(self.draws[0])

    @property
    def low(self) -> float:
        return self.interval().low

    @property
    def high(self) -> float:
        return self.interval().high

    def interval(self, level: float = 0.95) -> Interval:
        """Percentile bootstrap interval; value alone where there are fewer than two resamples."""
        if len(self.draws) < 3:
            return Interval(self.value, self.value, self.value)
        low, high = np.quantile(self.draws[1:], [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.value, float(low), float(high))

    def minus(self, other: Estimate, level: float = 0.95) -> Interval:
        """The paired difference self - other, both from the same metric object.

        Raises InputError if they do not share their resamples.
        """
        if len(self.draws) != len(other.draws):
            counts = f"{len(self.draws) - 1} and {len(other.draws) - 1}"
            raise InputError(f"estimates of {counts} resamples: expected two of one metric object")
        return Estimate(self.draws - other.draws).interval(level)


@dataclass(frozen=True)
class Samples:
    """What metrics look at; a metric reads what it names in `inputs`.

    `images` (n, C, H, W) in [-1, 1]; `features` (n, d) of one extractor; `paths` (p, N + 1, ...)
    states along the teacher's own Brownian paths, start noise first, at equal places for all sets;
    `prompts`: the text of each image; `series` (n, C, L): time series of C channels at L times, in
    the data's own units.
    """

    images: Tensor | None = None
    features: Tensor | None = None
    paths: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    series: Tensor | None = None
    _made: dict[Hashable, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` computes of these samples, once for all metrics that ask for ``key``."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def head(self, n: int | None) -> Samples:
        """The first n of each; all of them for None."""
        if n is None:
            return self
        cut = {name: getattr(self, name)[:n] for name in INPUTS if getattr(self, name) is not None}
        return replace(self, **cut)


@dataclass(frozen=True)
class MetricOptions:
    """`resamples` of the bootstrap and their `seed`; `neighbours` of precision and recall.

    `few`: how many samples of each set a metric takes whose value depends on their number; None
    for all. `clip`: a folder with a CLIP model, `aesthetic`: a predictor's file, for the metrics
    that look through them.
    """

    resamples: int = 0
    seed: int = 0
    neighbours: int = 3
    few: int | None = None
    clip: Path | None = None
    aesthetic: Path | None = None


DEFAULT = MetricOptions()


class Metric(ABC):
    """One figure of a set of samples against the real set it was built with.

    Class attributes: `name` in params and files; `title` in tables; `lower_is_better`, None for a
    figure that only describes; `inputs`, the fields of `Samples` that it reads; `shows_interval`,
    whether tables show the interval also where the metric is not the criterion; `decimals` in
    tables; `floor`, the smallest value that relative improvements are measured from.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    lower_is_better: ClassVar[bool | None]
    inputs: ClassVar[frozenset[Input]]
    shows_interval: ClassVar[bool] = False
    decimals: ClassVar[int] = 3
    floor: ClassVar[float] = 1e-12

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        self.real, self.options = real, options

    @abstractmethod
    def __call__(self, fake: Samples) -> Estimate:
        """The figure of `fake`; raises InputError for samples that cannot be measured."""

    def mean(self, values: Tensor) -> Estimate:
        """The mean of one value per sample (n,), resampled by sample."""
        each = values.double().cpu().numpy()
        counts = bootstrap_counts(len(each), self.options.resamples, self.options.seed + 1)
        return Estimate(counts @ each / len(each))


def bootstrap_counts(n: int, resamples: int, seed: int) -> Floats:
    """How often each of n samples is drawn (1 + resamples, n); the first row is the sample itself.

    A resample draws n of n with replacement. Equal n and seed give equal counts.
    """
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn]).astype(np.float64)


def chunks(rows: int, columns: int, limit: int = 2**27) -> Iterator[slice]:
    """Slices of `rows` whose (rows, columns) float64 blocks take at most `limit` bytes each."""
    step = max(1, limit // (8 * max(1, columns)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def checked_features(fake: Samples | Tensor, real: Samples | Tensor) -> tuple[Tensor, Tensor]:
    """The features (n, d) and (m, d) of both sets; InputError if they cannot be compared."""
    pair = tuple(x.features if isinstance(x, Samples) else x for x in (fake, real))
    first, second = pair
    if first is None or second is None:
        raise InputError("no features: expected those of an extractor for both sets")
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != second.shape[1]:
            raise InputError(
                f"features of shape {tuple(first.shape)} against {tuple(second.shape)}: "
                "expected (n, d) and (m, d) with n, m >= 2"
            )
        if not bool(features.isfinite().all()):
            raise InputError(
                "features hold NaN or infinite values: the samples or the extractor are broken"
            )
    return first, second
