"""Which network calls a job makes, stage by stage, from its params alone.

Counts are exact where the params decide them; what chance or the data decide is said in the
docstring of the method's costs. Rows are samples, once for every call that they pass through, as
`tasks.utils.network_passes` counts them in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.common.shapes import rows_at_once
from models.methods.base import DistillationMethod, MethodContext
from models.methods.costs import CODEC, Call, Costs, Gradient, Updates, guided
from models.sampling import baselines
from tasks.config.schema import Params
from tasks.config.trajectories import AdaptiveGrid, IndexGrid, Trajectories
from tasks.estimate.blueprint import Blueprint
from tasks.estimate.data import Facts

PATH_FIGURES = 64  # validation paths in the history's figures (tasks/training/selection.py)
VALIDATION_BATCH = 125  # samples at once (tasks/evaluation/validation.py)
PATH_SAMPLES = 256  # with path features in the evaluation (tasks/evaluation/load.py)
WARM_UP = 6  # calls that time the teacher (tasks/evaluation/sample_generator.py)
PROOF = 4  # images of the proof that the folder opens (tasks/evaluation/load_back.py)


@dataclass(frozen=True)
class Work:
    """``rows`` through a network in calls of ``batch`` rows; ``precision``: of autocast;
    ``workers``: that share the rows.
    """

    network: str
    rows: float
    batch: int
    gradient: Gradient = "none"
    size: int | None = None
    precision: str = "float32"
    workers: int = 1

    @property
    def counts(self) -> bool:
        """Whether it is a network's, not the autoencoder's."""
        return self.network not in CODEC


def evaluations(work: Sequence[Work]) -> tuple[int, int]:
    """(rows through networks, those of them whose weights get gradients)."""
    rows = [each for each in work if each.counts]
    trained = [each for each in rows if each.gradient == "weights"]
    return round(sum(each.rows for each in rows)), round(sum(each.rows for each in trained))


def teacher_work(params: Params, plan: Blueprint) -> list[Work]:
    """Its training, if it is trained, and a try at its first and last time."""
    source, prompts = params.teacher, plan.teacher.condition_kind == "prompts"
    work = [] if prompts else [Work("teacher", 2, 1)]
    if source.source != "train":
        return work
    for place, scale in enumerate(source.scales):
        steps = len(range(place, source.steps, len(source.scales)))
        rows = steps * source.batch_size
        work.append(Work("teacher", rows, source.batch_size, "weights", scale, source.precision))
    return work


def trajectories_work(params: Params, context: MethodContext) -> list[Work]:
    """Whole lanes, of which shards may share one, and the pilot runs of an adaptive grid."""
    spec = params.trajectories
    rows = sum(_lanes(spec, count) * spec.lane for count in (spec.train, spec.validation))
    rows += spec.lane if isinstance(spec.grid, AdaptiveGrid) else 0
    double = guided(context)
    workers = max(1, spec.workers)
    all_rows, batch = rows * spec.steps * double, spec.lane * double
    return [Work("teacher", all_rows, batch, precision=spec.precision, workers=workers)]


def _lanes(spec: Trajectories, count: int) -> int:
    shards = range(0, count, spec.shard_size)
    ends = ((low, min(low + spec.shard_size, count)) for low in shards)
    return sum(-(-high // spec.lane) - low // spec.lane for low, high in ends)


def method_context(params: Params, plan: Blueprint) -> MethodContext:
    """What the costs of a method are told from. An adaptive grid is not known before its pilot
    runs: the even one stands for it.
    """
    from tasks.data.trajectories import guidance_of, path_spec

    spec = params.trajectories
    if isinstance(spec.grid, AdaptiveGrid):
        spec = spec.model_copy(update={"grid": IndexGrid()})
    return MethodContext(
        teacher=plan.teacher,
        config=params.method,
        spec=path_spec(spec, plan.teacher),
        guidance=guidance_of(spec),
        total_steps=params.student.steps,
        seed=params.student.seed,
        gradient_checkpointing=params.student.gradient_checkpointing,
    )


def uses_real(
    method: type[DistillationMethod], params: Params, plan: Blueprint, facts: Facts | None
) -> bool:
    """Whether batches have training images beside them (tasks.methods.context.real_states)."""
    target, _ = method.image_target(params.method)
    teacher = plan.teacher
    fits = facts is not None and facts.shape == tuple(teacher.shape) and not teacher.codec.latent
    return target != "teacher" and fits and teacher.condition_kind == "none"


def student_work(params: Params, costs: Costs, needs: str) -> list[Work]:
    """Preparation, training and validations, of all workers together."""
    student, method = params.student, params.method
    shape = costs.teacher.shape
    at_once = rows_at_once(shape, VALIDATION_BATCH)
    prepared = costs.preparation(student.validation_samples)
    work = [_absolute(call, at_once) for call in prepared]
    for _ in range(2):  # before training, and to save the best weights
        work += [_absolute(c, rows_at_once(shape, int(c.rows))) for c in costs.building()]
    tally: dict[Call, float] = {}
    for updates, times in _updates(params, costs):
        for call in (call for _, calls in updates for call in calls):
            key = call._replace(rows=1.0)
            tally[key] = tally.get(key, 0.0) + call.rows * times
    workers, size = max(1, student.workers), student.batch_size
    # each has batches of its own, or a share of the same ones
    times = 1 if student.sharding == "full" else workers
    work += [
        Work(c.network, n * size * times, size, c.gradient, c.size, student.precision, workers)
        for c, n in tally.items()
    ]
    times = validations(params)
    figures = 0
    if needs == "paths":
        figures = min(rows_at_once(shape, PATH_FIGURES), params.trajectories.validation)
    for nfe in method.nfe:
        count = times * student.validation_samples
        batch = min(at_once, student.validation_samples)
        work += [_times(call, count, batch) for call in costs.sampling(nfe)]
        if costs.teacher.codec.latent:
            work.append(Work("decode", count, batch))
        if figures:
            work += [_times(call, times * figures, figures) for call in costs.figures(nfe)]
    return work


def _updates(params: Params, costs: Costs) -> list[tuple[Updates, int]]:
    """(the updates of a micro-batch, how often they come). Costs give the same object for the same
    updates where there are many, so that hundreds of thousands of steps are counted in seconds.
    """
    found: dict[int, tuple[Updates, int]] = {}
    for step in range(params.student.steps):
        for micro in range(params.student.accumulate):
            updates = costs.updates(step, micro)
            found[id(updates)] = (updates, found.get(id(updates), (updates, 0))[1] + 1)
    return list(found.values())


def validations(params: Params) -> int:
    """How often weights are scored: at the start, every so many steps and at the end."""
    student = params.student
    due = (s % student.validate_every == 0 or s == student.steps for s in _steps(student.steps))
    return 1 + sum(due)


def _steps(count: int) -> range:
    return range(1, count + 1)


def evaluation_work(
    params: Params,
    costs: Costs,
    context: MethodContext,
    equal: Sequence[int],
    rivals: Sequence[int] = (),
) -> list[Work]:
    """All samplers, with pilots of the rivals' time grids, timing, FLOPs and paths. ``equal``:
    further numbers of calls of the training-free ones that cost what a cheaper student does;
    ``rivals``: numbers of calls of other students.
    """
    settings, double = params.evaluation, guided(context)
    workers = max(1, settings.workers)
    samples, steps = settings.samples, sorted(settings.nfe or params.method.nfe, reverse=True)
    first = min(settings.batch_size, samples)
    work = [Work("teacher", (WARM_UP * first + 2) * double, first * double)]
    along = min(samples, PATH_SAMPLES, params.trajectories.validation)
    for nfe in steps:
        calls = list(costs.sampling(nfe))
        # FLOPs twice for the student, once for its untrained form
        for call in calls:
            work += [_times(call, 2 * samples, first, workers), _times(call, 3, 1)]
        if costs_follow_paths(costs):
            at_once = rows_at_once(costs.teacher.shape, along)
            work += [_times(call, 2 * along, at_once) for call in calls]
        if costs.teacher.codec.latent:
            work.append(Work("decode", 2 * samples, first, workers=workers))
        work += [_times(call, samples + 1, first, workers) for call in _controls(costs, calls)]
    for nfe in (*steps, *equal):
        for name in settings.baselines:
            tried = baselines.variants(context.teacher, name)
            if not tried:
                continue
            rows = (samples + (len(tried) - 1) * first + 1) * nfe * double
            work.append(Work("teacher", rows, first * double, workers=workers))
            if costs.teacher.codec.latent:
                decoded = samples + (len(tried) - 1) * first
                work.append(Work("decode", decoded, first, workers=workers))
    work += [Work("student", nfe * (samples + 1), first, workers=workers) for nfe in rivals]
    work += [_times(call, PROOF, PROOF) for call in costs.sampling(max(params.method.nfe))]
    if costs.teacher.codec.latent:
        work.append(Work("decode", params.trajectories.validation, first))
    return work


def costs_follow_paths(costs: Costs) -> bool:
    """Whether students are measured along the teacher's own paths (Sig-DEG)."""
    from models.methods.registry import METHODS, load

    place = METHODS[costs.config.kind].pipeline
    return load(place).path_features is not None


def _controls(costs: Costs, calls: Sequence[Call]) -> Sequence[Call]:
    """Calls of the student's controls for one sample: those of a further rollout each."""
    from models.methods.registry import METHODS, load

    pipeline: Any = load(METHODS[costs.config.kind].pipeline)
    return calls if "controls" in vars(pipeline) else ()


def _absolute(call: Call, batch: int) -> Work:
    return Work(call.network, call.rows, batch, call.gradient, call.size)


def _times(call: Call, count: float, batch: int, workers: int = 1) -> Work:
    return Work(call.network, call.rows * count, batch, call.gradient, call.size, workers=workers)
