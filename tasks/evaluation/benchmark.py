"""Measure the student beside its teacher, its untrained self, training-free samplers and real
images.

Every sampler starts from the noise of the cached validation paths and is measured against the same
held-out images. Path errors use the cached path features (the teacher's Brownian path), everything
else fresh ones. Where more images are wanted than there are cached paths, more noise is drawn; the
teacher's full run stays with its cached images. KID is unbiased and takes all of a set; Frechet
distance, precision and recall depend on how many there are, so every set is cut to the number of
the smallest for them.
"""

from __future__ import annotations

import logging
import time
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.common.errors import InputError
from models.common.random import generator_for
from models.evaluation.features import FeatureExtractor, extract
from models.evaluation.metrics import Kid, frechet_distance, path_rmse, precision_recall
from models.sampling import baselines
from models.teachers.conditioning import Condition
from tasks.config.evaluation import Evaluation
from tasks.evaluation.results import Result, Row
from tasks.evaluation.samplers import Inputs, Sampler, to_bytes
from tasks.utils.progress import Advance, progress

LATENCY_CALLS = 5

logger = logging.getLogger("tasks.evaluation.benchmark")


class Evaluator:
    """Measures sets of images against one real set; everything about the real set is computed once.

    ``few``: images of each set for the figures that depend on their number; None for all.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        real: Tensor,
        settings: Evaluation,
        few: int | None = None,
    ) -> None:
        self.extractor, self.settings, self.few = extractor, settings, few
        self.real = extract(extractor, real)
        self.kid = Kid(self.real, settings.bootstrap, settings.seed)

    def pilot_kid(self, images: Tensor) -> float:
        return Kid(self.real).add("pilot_kid", extract(self.extractor, images)).value("pilot_kid")

    def measure(
        self,
        sampler: str,
        title: str,
        group: str,
        nfe: int | None,
        images: Tensor,
        ms: float | None,
    ) -> Row:
        features = extract(self.extractor, images)
        self.kid.add(f"{sampler}.{nfe}", features)
        precision, recall = precision_recall(
            features[: self.few], self.real[: self.few], self.settings.neighbours
        )
        distance = frechet_distance(features[: self.few], self.real)
        moments = float(images.mean()), float(images.std())
        return Row(
            sampler,
            title,
            group,
            nfe,
            self.kid.interval(f"{sampler}.{nfe}"),
            distance,
            precision,
            recall,
            ms,
            *moments,
            len(images),
        )


class SampleGenerator:
    """Makes images batch by batch, always from the same noise, and times the batches."""

    def __init__(self, inputs: Inputs, settings: Evaluation, advance: Advance) -> None:
        self.inputs, self.settings, self.advance = inputs, settings, advance
        self.paths = inputs.paths.head(settings.samples)

    def batches(self) -> list[slice]:
        size, samples = self.settings.batch_size, self.settings.samples
        return [slice(start, min(start + size, samples)) for start in range(0, samples, size)]

    def inputs_of(self, batch: slice) -> tuple[Tensor, Condition | None]:
        """Start noise and condition of a batch, on the device: those of the cached paths, then more
        of their kind.
        """
        noise, condition, device = (
            self.paths.noise[batch],
            self.paths.condition,
            self.inputs.device,
        )
        if missing := batch.stop - batch.start - len(noise):
            generator = generator_for("cpu", self.settings.seed, 19, batch.start)
            noise = torch.cat(
                [noise, torch.randn((missing, *noise.shape[1:]), generator=generator)]
            )
        if condition is not None:
            rows = torch.arange(batch.start, batch.stop) % len(condition)
            condition = condition[rows].to(device)
        return noise.to(device), condition

    @torch.inference_mode()
    def make(self, sampler: Sampler, batches: list[slice], cost: int) -> tuple[Tensor, list[float]]:
        """Images (n, C, H, W) of some batches and the ms per image of each."""
        images, times = [], []
        for batch in batches:
            noise, condition = self.inputs_of(batch)
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + batch.start)
            start = time.perf_counter()
            x0 = sampler(noise, condition, generator).cpu()
            times.append(1000 * (time.perf_counter() - start) / len(noise))
            images.append(self.inputs.decode(x0))
            self.advance(len(noise) * cost)
        return torch.cat(images), times

    def warm_up(self) -> float:
        """ms of one teacher call per image, after a first call that is not counted."""
        noise, condition = self.inputs_of(self.batches()[0])
        times = []
        with torch.inference_mode():
            for _ in range(LATENCY_CALLS + 1):
                start = time.perf_counter()
                self.inputs.teacher.predict(
                    noise, torch.tensor(500.0), condition, self.inputs.guidance
                ).cpu()
                times.append(1000 * (time.perf_counter() - start) / len(noise))
        return median(times[1:])


def flops(inputs: Inputs, sampler: Sampler) -> int:
    """Floating-point operations of one image, as torch counts them."""
    first = inputs.paths.head(1).to(inputs.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sampler(first.noise, first.condition, torch.Generator().manual_seed(0))
    return int(counter.get_total_flops())


def teacher_flops(inputs: Inputs) -> int:
    """Those of one call of the teacher."""

    def once(noise: Tensor, condition: Condition | None, generator: torch.Generator) -> Tensor:
        prediction: Tensor = inputs.teacher.predict(
            noise, torch.tensor(500.0), condition, inputs.guidance
        )
        return prediction

    return flops(inputs, once)


def equal_compute(inputs: Inputs) -> list[int]:
    """Numbers of the teacher's calls that cost what a cheaper student does; none for one of
    full-size steps.
    """
    one = teacher_flops(inputs)
    found = (
        {nfe: flops(inputs, inputs.generator("student", nfe)) for nfe in inputs.nfe} if one else {}
    )
    calls = {max(1, round(cost / one)) for nfe, cost in found.items() if round(cost / one) < nfe}
    return sorted(calls - set(inputs.nfe), reverse=True)


def evaluate(inputs: Inputs, extractor: FeatureExtractor, settings: Evaluation) -> Result:
    """All samplers of `inputs` measured; InputError when there are too few images or paths."""
    samples, few = settings.samples, min(settings.samples, len(inputs.paths))
    if few <= settings.neighbours or len(inputs.real) <= settings.neighbours:
        raise InputError(
            f"{few} validation paths, {len(inputs.real)} held-out images: expected more than "
            f"evaluation.neighbours = {settings.neighbours} of each; "
            "raise trajectories.validation or dataset.holdout"
        )
    evaluator = Evaluator(extractor, inputs.real, settings, few)
    result = Result(extractor.label, samples, len(inputs.real), few, diagnostics=inputs.diagnostics)
    names: list[str] = [
        name for name in settings.baselines if baselines.variants(inputs.teacher, name)
    ]
    for other in sorted(set(settings.baselines) - set(names)):
        logger.warning("%s does not apply to this teacher and is left out", baselines.title(other))
    equal = equal_compute(inputs)
    with progress(
        "evaluation", _total(inputs, samples, names, settings.batch_size, equal)
    ) as advance:
        sample_generator = SampleGenerator(inputs, settings, advance)
        _references(result, evaluator, inputs, sample_generator)
        for nfe in inputs.nfe:
            for name in inputs.generators:
                _generator(result, evaluator, sample_generator, name, nfe)
            for name in names:
                _baseline(result, evaluator, sample_generator, name, nfe)
        for name, (_, steps) in inputs.others.items():
            for nfe in steps:
                _generator(result, evaluator, sample_generator, name, nfe)
        for nfe in equal:
            for name in names:
                _baseline(result, evaluator, sample_generator, name, nfe)
        if inputs.paths.xi:
            _paths(result, inputs, settings, advance)
    _compare(result, evaluator)
    return result


def _total(inputs: Inputs, samples: int, names: list[str], batch: int, equal: list[int]) -> int:
    calls = sum(inputs.nfe)
    pilots = sum(len(baselines.variants(inputs.teacher, name)) - 1 for name in names) * min(
        samples, batch
    )
    baseline_calls = (calls + sum(equal)) * (len(names) * samples + pilots)
    others = sum(sum(steps) for _, steps in inputs.others.values()) * samples
    return (
        baseline_calls
        + others
        + calls * len(inputs.generators) * (samples + _path_count(inputs, samples))
    )


def _path_count(inputs: Inputs, samples: int) -> int:
    return min([samples, *(len(xi) for xi in inputs.paths.xi.values())]) if inputs.paths.xi else 0


def _references(
    result: Result, evaluator: Evaluator, inputs: Inputs, sample_generator: SampleGenerator
) -> None:
    """The teacher's full run, from the cache, and other real images."""
    ms = sample_generator.warm_up() * inputs.steps
    with torch.inference_mode():
        full = torch.cat(
            [inputs.decode(states[:, -1]) for states in sample_generator.paths.states.split(250)]
        )
    for sampler, title, group, nfe, images, cost in (
        ("teacher", "Teacher, full run", "teacher", inputs.steps, full, ms),
        ("real", "Real images", "real", None, inputs.other_real, None),
    ):
        row = evaluator.measure(sampler, title, group, nfe, images, cost)
        if sampler == "teacher":
            result.flops[row.key] = inputs.steps * teacher_flops(inputs)
        result.rows.append(row)
        result.images[row.key] = to_bytes(images)


def _generator(
    result: Result, evaluator: Evaluator, sample_generator: SampleGenerator, name: str, nfe: int
) -> None:
    """The student, the untrained generator or another rollout, on fresh noise."""
    sampler, inputs = sample_generator.inputs.generator(name, nfe), sample_generator.inputs
    images, times = sample_generator.make(sampler, sample_generator.batches(), nfe)
    group = name if name in inputs.generators else "other"
    title = inputs.titles.get(name, f"{name.capitalize()} Sig-DEG")
    row = evaluator.measure(name, title, group, nfe, images, median(times))
    result.flops[row.key] = flops(inputs, sampler)
    if (name, nfe) in sample_generator.inputs.calls:
        result.calls[row.key] = sample_generator.inputs.calls[name, nfe]
    _record(result, row, images)


def _record(result: Result, row: Row, images: Tensor) -> None:
    result.rows.append(row)
    result.images[row.key] = to_bytes(images)
    logger.info(
        "%s, %s calls: KID %.5f, %.1f ms per image",
        row.title,
        row.nfe,
        row.kid.value,
        row.ms_per_image,
    )


def _baseline(
    result: Result, evaluator: Evaluator, sample_generator: SampleGenerator, name: str, nfe: int
) -> None:
    """A training-free sampler in the spacing that a pilot_kid on the first batch finds best."""
    first, *rest = sample_generator.batches()
    options = baselines.variants(sample_generator.inputs.teacher, name)
    made = {
        v: sample_generator.make(sample_generator.inputs.baseline(v, nfe), [first], nfe)
        for v in options
    }
    best = min(made, key=lambda v: evaluator.pilot_kid(made[v][0])) if len(made) > 1 else options[0]
    images, times = made[best]
    if rest:
        more, more_times = sample_generator.make(
            sample_generator.inputs.baseline(best, nfe), rest, nfe
        )
        images, times = torch.cat([images, more]), times + more_times
    row = evaluator.measure(name, baselines.title(name), "baseline", nfe, images, median(times))
    result.spacing[row.key] = baselines.split_name(best)[1]
    result.flops[row.key] = flops(
        sample_generator.inputs, sample_generator.inputs.baseline(best, nfe)
    )
    _record(result, row, images)


def _paths(result: Result, inputs: Inputs, settings: Evaluation, advance: Advance) -> None:
    """RMSE to the teacher along its own Brownian path, and what the samplers make of it."""
    paths = inputs.paths.head(_path_count(inputs, settings.samples)).to(inputs.device)
    result.path_images["teacher"] = to_bytes(inputs.decode(paths.states[:, -1]))
    for nfe in inputs.nfe:
        reference = paths.coarse(nfe).cpu()
        for name, rollout in inputs.generators.items():
            # students trained with the energy score draw an input beyond the path's features
            generator = generator_for("cpu", settings.seed, 29, nfe)
            with torch.inference_mode():
                x0, states = rollout(paths.noise, paths.xi[nfe], paths.condition, nfe, generator)
            errors = path_rmse(states.cpu(), reference, settings.bootstrap, settings.seed)
            result.path_error[name, nfe] = errors
            result.path_images[f"{name}.nfe{nfe}"] = to_bytes(inputs.decode(x0))
            advance(len(paths) * nfe)


def _compare(result: Result, evaluator: Evaluator) -> None:
    """Paired KID differences of the student to what it has to beat."""
    steps = sorted(
        {row.nfe for row in result.rows if row.group == "baseline" and row.nfe}, reverse=True
    )
    for nfe in result.nfe:
        rivals = {
            "teacher": result.teacher,
            **{f"best_at_{n}": r[0] for n in steps if (r := result.baselines(n))},
            **{
                row.sampler if row.nfe == nfe else f"{row.sampler}_at_{row.nfe}": row
                for row in result.rows
                if row.group == "other"
            },
        }
        rivals |= {
            row.group: row for row in result.rows if row.group == "untrained" and row.nfe == nfe
        }
        for name, rival in rivals.items():
            gap = evaluator.kid.difference(f"student.{nfe}", f"{rival.sampler}.{rival.nfe}")
            result.differences[f"{name}.nfe{nfe}"] = gap
