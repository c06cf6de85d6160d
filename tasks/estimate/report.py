"""The estimate of a job, stage by stage, and the lines that show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.config.schema import Params
from tasks.estimate import fixed
from tasks.estimate.devices import GIB, Device
from tasks.estimate.job import Job, take_apart
from tasks.estimate.metrics import MetricTimes, time_metrics
from tasks.estimate.noise import noise_seconds
from tasks.estimate.speed import Speed, choose_speed
from tasks.estimate.work import validations
from tasks.utils.stage_names import STAGES

REFERENCE = 4000  # real images that weights are scored against
TEXT = ("stage", "evaluations", "trained", "hours", "device", "host", "disk", "scratch")


@dataclass(frozen=True)
class StageEstimate:
    """``evaluations``, ``trained``: rows through networks, as a run's measurement counts them;
    ``seconds``: of CPU, or of all devices; ``hours``: on the clock; ``device``, ``host``: bytes at
    the peak; ``disk``, ``scratch``: bytes; ``phase``: when the device holds the most.
    """

    name: str
    evaluations: int
    trained: int
    seconds: float
    hours: float
    device: float
    host: float
    disk: float
    scratch: float
    phase: str


@dataclass(frozen=True)
class Estimate:
    """``told``: what the times are from; ``threads``: cores that CPU seconds are shared by;
    ``device``: whose memory counts, None for this machine's CPU, where device and host are one.
    """

    job: Job
    stages: tuple[StageEstimate, ...]
    told: str
    threads: int
    device: Device | None

    def stage(self, name: str) -> StageEstimate:
        return next(each for each in self.stages if each.name == name)

    @property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.stages)

    @property
    def bytes_on_disk(self) -> float:
        """Results, and the largest scratch that stands beside them."""
        return sum(e.disk for e in self.stages) + max(e.scratch for e in self.stages)


def estimate(params: Params, root: Path, device: Device | None = None) -> Estimate:
    """The estimate on ``device``, or on this machine. Raises InputError as `take_apart` does."""
    job = take_apart(params, root)
    speed = choose_speed(job.networks, device)
    found = device if device is not None else getattr(speed, "device", None)
    metrics = time_metrics(params, root, job.plan, job.facts)
    stages = tuple(stage_estimate(job, name, speed, metrics, found) for name in STAGES)
    return Estimate(job, stages, speed.told, speed.threads, found)


def stage_estimate(
    job: Job, name: str, speed: Speed, metrics: MetricTimes, device: Device | None
) -> StageEstimate:
    """One row."""
    rows, trained = job.evaluations(name)
    work, rest = job.work.get(name, []), beside(job, name, speed, metrics)
    calls = [speed.seconds(each) for each in work]
    # workers share a CPU, and have a GPU each
    shared = [each.workers if device is not None else speed.threads for each in work]
    clock = sum(s / n for s, n in zip(calls, shared, strict=True)) + rest / speed.threads
    on_device, host, phase = resident(job, name, device)
    disk = job.disk(name)
    return StageEstimate(
        name,
        rows,
        trained,
        sum(calls) + rest,
        clock / 3600,
        on_device,
        host,
        disk.result,
        disk.scratch,
        phase,
    )


def resident(job: Job, name: str, device: Device | None) -> tuple[float, float, str]:
    """(bytes on the device, on the host, when); without a GPU both are the process's."""
    lanes = 1
    if device is None:
        spec = job.params.trajectories
        lanes = max(1, min(torch.get_num_threads(), spec.batch_size // spec.lane))
    memory = job.memory(name, lanes)
    packages = fixed.PACKAGES[name]
    if name == "conditions" and job.plan.encoders:
        packages = fixed.PACKAGES["teacher"]
    if name == "dataset" and not makes_images(job):
        packages = fixed.LIGHT
    if device is None:
        whole = packages + memory.device + memory.host
        return whole, whole, memory.phase
    context = fixed.CUDA_CONTEXT if memory.device else 0
    return memory.device + context, packages + memory.host, memory.phase


def makes_images(job: Job) -> bool:
    """Whether there are images to read; series and no data at all are little work."""
    return job.facts is not None and job.params.dataset.data_kind == "images"


def beside(job: Job, name: str, speed: Speed, metrics: MetricTimes) -> float:
    """Seconds that are not those of networks."""
    params, seconds = job.params, fixed.SECONDS[name]
    if name == "dataset":
        return seconds if makes_images(job) else 0.1
    if name == "conditions":
        return fixed.ENCODERS + encoding_seconds(job, speed) if job.plan.encoders else seconds
    if name == "teacher" and params.teacher.source == "train":
        return seconds + params.teacher.steps * speed.step_seconds()
    if name == "trajectories":
        return seconds + noise_seconds(params.trajectories, job.plan.state)
    if name == "student":
        student, roles = params.student, len(job.costs.optimized)
        scored = validations(params) * len(params.method.nfe) * student.validation_samples
        features = (scored + REFERENCE) * metrics.sample
        return seconds + features + student.steps * roles * speed.step_seconds()
    if name == "evaluation":
        return seconds + metrics.real + job.samplers * metrics.sampler
    return seconds


def encoding_seconds(job: Job, speed: Speed) -> float:
    """Of all prompts: two operations for each weight and token, embeddings left out."""
    if job.prompts is None:
        return 0.0
    tokens = max(shape[0] for shape, _ in job.plan.condition.values() if len(shape) > 1)
    weights = sum(
        p.numel()
        for part in job.plan.encoders.values()
        for name, p in part.named_parameters()
        if "embed" not in name and "shared" not in name
    )
    prompts = job.prompts.train + job.prompts.holdout
    return speed.of_flops(2.0 * weights * tokens * prompts)


def lines(found: Estimate) -> Iterator[str]:
    """The table, with what it rests on."""
    rows = [TEXT, *(_row(found, each) for each in found.stages), _total(found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(TEXT))]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "  ".join(cells).rstrip()
    plan = found.job.plan
    parameters, trained = found.job.networks.student_weights
    yield ""
    yield f"network: {plan.parameters / 1e6:,.1f} M weights, from {plan.told}"
    yield (
        f"student: {parameters / 1e6:,.1f} M weights, {trained / 1e6:,.1f} M trained, float32; "
        f"{found.job.flops('student') / 1e15:,.3g} PFLOP of training"
    )
    yield f"hours: {found.told}; start-up of the programs is not counted{_workers(found)}"
    yield "disk: results / scratch while a stage works; DVC's cache holds results as links"
    yield from (f"note: {note}" for note in found.job.notes)


def _workers(found: Estimate) -> str:
    """Who shares the work, where a GPU each is assumed."""
    params = found.job.params
    shares = {
        "trajectories": params.trajectories.workers,
        "training": params.student.workers,
        "evaluation": params.evaluation.workers,
    }
    told = [f"{what} on {count} devices" for what, count in shares.items() if count > 1]
    return f"; {', '.join(told)}" if told and found.device is not None else ""


def _row(found: Estimate, stage: StageEstimate) -> tuple[str, ...]:
    return (
        stage.name,
        f"{stage.evaluations:,}",
        f"{stage.trained:,}",
        _hours(stage.hours),
        size(stage.device) if found.device is not None else "",
        size(stage.host),
        size(stage.disk),
        size(stage.scratch),
    )


def _total(found: Estimate) -> tuple[str, ...]:
    stages = found.stages
    return (
        "all",
        f"{sum(e.evaluations for e in stages):,}",
        f"{sum(e.trained for e in stages):,}",
        _hours(sum(e.hours for e in stages)),
        size(max(e.device for e in stages)) if found.device is not None else "",
        size(max(e.host for e in stages)),
        size(sum(e.disk for e in stages)),
        size(max(e.scratch for e in stages)),
    )


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.3f}"


def size(count: float) -> str:
    """Bytes for a reader."""
    if count >= 0.1 * GIB:
        return f"{count / GIB:,.1f} GiB"
    return f"{count / 2**20:,.1f} MiB" if count >= 1e5 else f"{count / 1024:,.0f} KiB"
