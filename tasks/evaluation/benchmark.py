"""Measure the student beside its teacher, its untrained self, training-free samplers and real
images.

Every sampler starts from the noise of the cached validation paths and is measured against the same
held-out images. Path errors use the cached path features (the teacher's Brownian path), everything
else fresh ones. Where more images are wanted than there are cached paths, more noise is drawn; the
teacher's full run stays with its cached images. KID is unbiased and takes all of a set; metrics
whose value depends on the number of images take as many of every set as the smallest has.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.common.shapes import rows_at_once
from models.evaluation.base import Metric, Samples
from models.evaluation.features import FeatureExtractor
from models.evaluation.paths import path_rmse
from models.evaluation.series.gaussian_laws import law_errors
from models.sampling import baselines
from models.teachers.conditioning import Condition
from tasks.config.evaluation import Evaluation
from tasks.evaluation.evaluator import Evaluator, column_of
from tasks.evaluation.results import Column, Result, Row, SamplerKey
from tasks.evaluation.sample_generator import (
    MakeBatches,
    SampleGenerator,
    equal_compute,
    flops,
    teacher_flops,
)
from tasks.evaluation.samplers import Inputs, Rollout
from tasks.utils.progress import Advance, progress

KEPT = {"images": 256, "series": 2000}  # of every sampler, for pictures and samples.npz

logger = logging.getLogger("tasks.evaluation.benchmark")


def evaluate(
    inputs: Inputs,
    extractors: Sequence[FeatureExtractor],
    settings: Evaluation,
    make_batches: MakeBatches | None = None,
) -> Result:
    """All samplers of `inputs` measured; InputError when there are too few images or paths.

    `make_batches` makes their images elsewhere; the times are those of there then. A baseline
    that cannot run on this teacher is left out, with its reason in the result.
    """
    samples, few = settings.samples, min(settings.samples, len(inputs.paths))
    if few <= settings.neighbours or len(inputs.real) <= settings.neighbours:
        raise InputError(
            f"{few} validation paths, {len(inputs.real)} held-out images: expected more than "
            f"evaluation.neighbours = {settings.neighbours} of each; "
            "raise trajectories.validation or dataset.holdout"
        )
    evaluator = Evaluator(
        extractors, inputs.real, settings, few, inputs.kind, training=inputs.other_real
    )
    result = Result(
        extractors[0].label if extractors else "",
        samples,
        len(inputs.real),
        few,
        columns=_columns(evaluator, inputs.against),
        criterion=settings.criterion,
        diagnostics=inputs.diagnostics,
        data=inputs.kind,
        channels=inputs.channels,
        against=inputs.against,
        prompts=inputs.prompts_of(min(settings.samples, KEPT["images"])),
    )
    if inputs.kind == "series":
        result.real_data = inputs.kept(inputs.real[: KEPT["series"]])
    equal = equal_compute(inputs)
    with progress("evaluation", _total(inputs, settings, equal)) as advance:
        made = SampleGenerator(inputs, settings, advance, make_batches)
        run = _Run(result, evaluator, inputs, made)
        run.references()
        for nfe in inputs.nfe:
            for name in inputs.generators:
                run.generator(name, nfe)
            for name in settings.baselines:
                run.baseline(name, nfe)
        for name, (_, steps) in inputs.others.items():
            for nfe in steps:
                run.generator(name, nfe)
        for nfe in equal:
            for name in settings.baselines:
                run.baseline(name, nfe)
        if inputs.paths.xi:
            run.paths(settings, advance)
    _compare(result, evaluator)
    return result


@dataclass(frozen=True)
class _Run:
    """One evaluation: what is filled, what measures, what is measured, and what makes images."""

    result: Result
    evaluator: Evaluator
    inputs: Inputs
    sample_generator: SampleGenerator

    def references(self) -> None:
        """The teacher's full run, from the cache, and other real images."""
        inputs = self.inputs
        ms = self.sample_generator.warm_up() * inputs.steps
        states = self.sample_generator.paths.states
        with torch.inference_mode():
            full = torch.cat([inputs.decode(part[:, -1]) for part in states.split(250)])
        teacher, real = SamplerKey("teacher"), SamplerKey("real")
        self._record(teacher, "Teacher, full run", "teacher", inputs.steps, full, ms)
        self.result.flops[teacher] = inputs.steps * teacher_flops(inputs)
        if inputs.has_data:
            self._record(real, f"Real {inputs.kind}", "real", None, inputs.other_real, None)

    def generator(self, name: str, nfe: int) -> None:
        """The student, the untrained generator or another rollout, on fresh noise."""
        inputs, key = self.inputs, SamplerKey(name, nfe)
        images, times = self.sample_generator.make(name, nfe, self.sample_generator.batches())
        group = name if name in inputs.generators else "other"
        title = inputs.titles.get(name, name.capitalize())
        self._record(key, title, group, nfe, images, median(times))
        self.result.flops[key] = flops(inputs, inputs.generator(name, nfe))
        if (name, nfe) in inputs.calls:
            self.result.calls[key] = inputs.calls[name, nfe]

    def baseline(self, name: str, nfe: int) -> None:
        """A training-free sampler in the spacing that a pilot on the first batch finds best, by
        training data.
        """
        key, made = SamplerKey(name, nfe), {}
        first, *rest = self.sample_generator.batches()
        try:
            for variant in baseline_variants(self.inputs.teacher, name):
                made[variant] = self.sample_generator.make(variant, nfe, [first])
        except InputError as error:
            self.result.left_out[key] = str(error)
            logger.warning("%s, %s calls, is left out: %s", baselines.title(name), nfe, error)
            return
        best = next(iter(made))
        if len(made) > 1:
            best = min(made, key=lambda v: self.evaluator.pilot_cost(made[v][0]))
        images, times = made[best]
        if rest:
            more, more_times = self.sample_generator.make(best, nfe, rest)
            images, times = torch.cat([images, more]), times + more_times
        self._record(key, baselines.title(name), "baseline", nfe, images, median(times))
        self.result.spacing[key] = baselines.split_name(best)[1]
        self.result.flops[key] = flops(self.inputs, self.inputs.baseline(best, nfe))

    def paths(self, settings: Evaluation, advance: Advance) -> None:
        """RMSE to the teacher along its own Brownian path, and what the samplers make of it."""
        inputs, result = self.inputs, self.result
        paths = inputs.paths.head(_path_count(inputs, settings.samples)).to(inputs.device)
        result.path_images[SamplerKey("teacher")] = inputs.kept(inputs.decode(paths.states[:, -1]))
        for nfe in inputs.nfe:
            reference = paths.coarse(nfe).cpu()
            for name, rollout in inputs.generators.items():
                key, inner = SamplerKey(name, nfe), (paths.xi[nfe], paths.condition, nfe)
                # students trained with the energy score draw an input beyond the path's features
                generator = generator_for("cpu", settings.seed, 29, nfe)
                x0, states = _in_parts(rollout, paths.noise, *inner, generator)
                result.path_error[key] = path_rmse(
                    states, reference, settings.bootstrap, settings.seed
                )
                self._measure_paths(key, states, reference)
                result.path_images[key] = inputs.kept(inputs.decode(x0))
                advance(len(paths) * nfe)

    def _measure_paths(self, key: SamplerKey, states: Tensor, reference: Tensor) -> None:
        """The metrics of the table that look at paths."""
        evaluator, row = self.evaluator, self.result.row(key.name, key.nfe)
        for name, metric in evaluator.classes.items():
            if "paths" in metric.inputs:
                bound: Metric = metric(Samples(paths=reference), evaluator.options(metric))
                row.figures[name] = bound(Samples(paths=states)).interval()
                self.result.columns.setdefault(name, column_of(metric, name, None))

    def _record(
        self,
        key: SamplerKey,
        title: str,
        group: str,
        nfe: int | None,
        images: Tensor,
        ms: float | None,
    ) -> None:
        figures = self.evaluator.measure(key, images, self.inputs.prompts_of(len(images)))
        row = Row(key, title, group, nfe, figures, ms, len(images))
        self.result.rows.append(row)
        self.result.images[key] = self.inputs.kept(images[: KEPT[self.result.data]])
        if self.inputs.law is not None:
            self.result.law[key] = law_errors(images[:, 0].double().numpy(), self.inputs.law)
        score = f"{self.result.column.title} {self.result.score(row).value:.5f}"
        time = "" if ms is None else f", {ms:.1f} ms per {self.result.one}"
        logger.info("%s, %s calls: %s%s", title, nfe, score, time)


@torch.inference_mode()
def _in_parts(
    rollout: Rollout,
    noise: Tensor,
    xi: Tensor,
    condition: Condition | None,
    nfe: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(x0, states) of a rollout, states on the CPU; large states some at a time."""
    size, parts = rows_at_once(noise.shape[1:], len(noise)), []
    for low in range(0, len(noise), size):
        rows = slice(low, low + size)
        own = None if condition is None else condition[rows]
        x0, states = rollout(noise[rows], xi[rows], own, nfe, generator)
        parts.append((x0, states.cpu()))
    ends, passed = zip(*parts, strict=True)
    return torch.cat(ends), torch.cat(passed)


def _columns(evaluator: Evaluator, against: str) -> dict[str, Column]:
    """The figures by name; their titles say what they are compared with if it is not real data."""
    if against == "real":
        return dict(evaluator.columns)
    return {
        name: column
        if column.lower_is_better is None
        else replace(column, title=f"{column.title} to the teacher")
        for name, column in evaluator.columns.items()
    }


def baseline_variants(teacher: Any, name: str) -> tuple[str, ...]:
    """The baseline in every spacing it is tried in; InputError, with the reason, if it does not
    apply.
    """
    if reason := baselines.why_not(teacher, name):
        raise InputError(reason)
    return tuple(baselines.variants(teacher, name))


def _total(inputs: Inputs, settings: Evaluation, equal: list[int]) -> int:
    """Network calls in all, for the progress bar."""
    samples, calls = settings.samples, sum(inputs.nfe)
    found = [baselines.variants(inputs.teacher, name) for name in settings.baselines]
    applicable = [variants for variants in found if variants]
    pilots = sum(len(variants) - 1 for variants in applicable) * min(samples, settings.batch_size)
    baseline_calls = (calls + sum(equal)) * (len(applicable) * samples + pilots)
    others = sum(sum(steps) for _, steps in inputs.others.values()) * samples
    along_paths = samples + _path_count(inputs, samples)
    return baseline_calls + others + calls * len(inputs.generators) * along_paths


def _path_count(inputs: Inputs, samples: int) -> int:
    return min([samples, *(len(xi) for xi in inputs.paths.xi.values())]) if inputs.paths.xi else 0


def _compare(result: Result, evaluator: Evaluator) -> None:
    """Paired differences of the student to what it has to beat, by the criterion."""
    steps = sorted({row.nfe for row in result.rows if row.group == "baseline" and row.nfe})
    best = [rivals[0] for nfe in steps if (rivals := result.baselines(nfe))]
    others = [row for row in result.rows if row.group == "other"]
    for nfe in result.nfe:
        untrained = [r for r in result.rows if r.group == "untrained" and r.nfe == nfe]
        student = SamplerKey("student", nfe)
        for rival in [result.teacher, *best, *others, *untrained]:
            gap = evaluator.difference(student, rival.key)
            result.differences[student, rival.key] = gap
