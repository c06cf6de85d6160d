"""Sets of images or series against one real set: every metric, in every extractor's features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import Estimate, Interval, Metric, MetricOptions, Samples
from models.evaluation.features import FeatureExtractor, extract
from models.evaluation.registry import criterion_class, metric_class
from tasks.config.evaluation import Evaluation
from tasks.evaluation.results import Column, SamplerKey


@dataclass(frozen=True)
class _Bound:
    """A metric, bound to the real set as the extractor with this index sees it."""

    column: str
    metric: Metric
    extractor: int


class Evaluator:
    """Measures sets of images or series; everything about the real set is computed once.

    The first extractor is the criterion's; series have none. `few`: samples of each set for the
    figures that depend on their number; None for all. `kind`: images or series. `training`: real
    data that settings may be chosen by (`pilot_cost`), which `real` must not be used for. Raises
    InputError for a metric that cannot be used as asked.
    """

    def __init__(
        self,
        extractors: Sequence[FeatureExtractor],
        real: Tensor,
        settings: Evaluation,
        few: int | None = None,
        kind: str = "images",
        training: Tensor | None = None,
    ) -> None:
        self.kind, self.training = kind, training
        self.extractors, self.settings, self.few = extractors, settings, few
        self.classes = {name: metric_class(name) for name in settings.metrics}
        criterion_class(settings.criterion, "evaluation.criterion")
        if len({extractor.label for extractor in extractors}) < len(extractors):
            labels = ", ".join(extractor.label for extractor in extractors)
            raise InputError(
                f"evaluation.more_features: two extractors are called alike ({labels}): expected "
                "distinct names; rename the file or folder"
            )
        self._check_inputs()
        self.real = self._seen(real)
        self.columns: dict[str, Column] = {}
        self._bound: list[_Bound] = []
        for index in range(len(self.real)):
            self._bind(index)
        self.estimates: dict[SamplerKey, Estimate] = {}
        self._pilot: Metric | None = None

    def _check_inputs(self) -> None:
        """InputError for a metric that reads what data of this kind do not have."""
        there = {"series"} if self.kind == "series" else {"images", "features", "prompts"}
        for name, metric in self.classes.items():
            if lacking := sorted(metric.inputs - there - {"paths"}):
                raise InputError(
                    f"evaluation.metrics: {name} needs {lacking[0]}, the dataset makes "
                    f"{self.kind}; leave it out"
                )

    def _seen(
        self, data: Tensor, prompts: tuple[str, ...] | None = None, extractors: int | None = None
    ) -> list[Samples]:
        """What metrics read of a set: as each of the first `extractors` sees images, None for all;
        or series as they are.
        """
        if self.kind == "series":
            return [Samples(series=data)]
        return [
            Samples(images=data, features=extract(extractor, data), prompts=prompts)
            for extractor in self.extractors[:extractors]
        ]

    def _bind(self, index: int) -> None:
        label = self.extractors[index].label if self.extractors else ""
        for name, metric in self.classes.items():
            by_features = "features" in metric.inputs
            if "paths" in metric.inputs or (index and not by_features):
                continue
            column = f"{name}_{slug(label)}" if index else name
            deciding = column == self.settings.criterion
            self._bound.append(
                _Bound(column, metric(self.real[index], self.options(metric, deciding)), index)
            )
            self.columns[column] = column_of(metric, column, label if by_features else None)

    def options(self, metric: type[Metric], deciding: bool = False) -> MetricOptions:
        """Intervals are computed where they are shown."""
        settings = self.settings
        resamples = settings.bootstrap if metric.shows_interval or deciding else 0
        clip = None if settings.clip is None else Path(settings.clip.path)
        aesthetic = settings.clip.aesthetic if settings.clip else None
        return MetricOptions(
            resamples,
            settings.seed,
            settings.neighbours,
            self.few,
            clip,
            None if aesthetic is None else Path(aesthetic),
        )

    def measure(
        self, key: SamplerKey, images: Tensor, prompts: tuple[str, ...] | None = None
    ) -> dict[str, Interval]:
        """All figures of images (n, C, H, W) in [-1, 1], or of series (n, C, L), by column; the
        criterion's estimate is kept for comparisons.
        """
        check_shape(images, self.real[0].images)
        seen = self._seen(images, prompts)
        found = {}
        for bound in self._bound:
            if "prompts" in bound.metric.inputs and prompts is None:
                raise InputError(
                    f"evaluation.metrics: {bound.column} needs prompts, the data has none; leave "
                    "it out"
                )
            estimate = bound.metric(seen[bound.extractor])
            if bound.column == self.settings.criterion:
                self.estimates[key] = estimate
            found[bound.column] = estimate.interval()
        return found

    def score(self, key: SamplerKey, images: Tensor) -> Estimate:
        """The criterion alone, kept for comparisons."""
        check_shape(images, self.real[0].images)
        bound = next(b for b in self._bound if b.column == self.settings.criterion)
        self.estimates[key] = bound.metric(self._seen(images, extractors=1)[0])
        return self.estimates[key]

    def pilot_cost(self, images: Tensor) -> float:
        """The criterion of a few images against training data, turned so that less is better."""
        metric = metric_class(self.settings.criterion)
        if self._pilot is None:
            if self.training is None:
                raise ValueError("no training data: settings are not chosen by the held-out set")
            seen = self._seen(self.training, extractors=1)[0]
            self._pilot = metric(seen, MetricOptions(neighbours=self.settings.neighbours))
        value = self._pilot(self._seen(images, extractors=1)[0]).value
        return value if metric.lower_is_better else -value

    def difference(self, first: SamplerKey, second: SamplerKey) -> Interval:
        """The paired difference of the criterion, first minus second."""
        return self.estimates[first].minus(self.estimates[second])


def check_shape(images: Tensor, real: Tensor | None) -> None:
    """InputError unless both have the same channels, height and width."""
    if real is not None and images.shape[1:] != real.shape[1:]:
        made, wanted = ("x".join(map(str, x.shape[1:])) for x in (images, real))
        raise InputError(
            f"generated images are {made} (channels x height x width), the real ones {wanted}: "
            "expected the same; choose a teacher and a dataset that agree"
        )


def column_of(metric: type[Metric], name: str, features: str | None) -> Column:
    return Column(
        name,
        metric.title,
        features,
        metric.lower_is_better,
        metric.shows_interval,
        metric.decimals,
    )


def slug(label: str) -> str:
    """The label in names of figures: letters, digits and underscores, as MLflow wants them."""
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_") or "features"
