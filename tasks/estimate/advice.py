"""What to change where a stage does not fit a device: changes that are computed, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from models.common.errors import InputError
from tasks.config.overrides import apply_override, validated
from tasks.config.schema import Params, params_dict, params_model
from tasks.estimate.devices import Device
from tasks.estimate.job import Job
from tasks.estimate.report import resident, size
from tasks.methods.context import method_of

Changes = tuple[tuple[str, Any], ...]
SHARDED = ("student.sharding", "full")


def advice(job: Job, stage: str, device: Device, limit: float) -> str:
    """One line: the smallest of the changes that bring ``stage`` below ``limit`` bytes on the
    device, or how far the last of them goes.
    """
    now, _, _ = resident(job, stage, device)
    best: tuple[float, Changes] | None = None
    for changes in candidates(job.params, stage):
        then, _, _ = resident(job.with_params(changed(job.params, changes)), stage, device)
        if best is None or then < best[0]:
            best = (then, changes)
        if then <= limit:
            return _line(job.params, stage, changes, now, then)
    if best is None:
        return f"{stage}: nothing in the params makes it smaller"
    found = _line(job.params, stage, best[1], now, best[0])
    return f"{found}, still more than there is: a larger device, or a smaller teacher"


def candidates(params: Params, stage: str) -> Iterator[Changes]:
    """From the mildest on; those of the student keep the number of samples of a step."""
    if stage == "trajectories":
        yield from _halved("trajectories.lane", params.trajectories.lane, "trajectories.batch_size")
    if stage == "evaluation":
        yield from _halved("evaluation.batch_size", params.evaluation.batch_size)
    if stage == "conditions":
        yield from _halved("conditions.batch_size", params.conditions.batch_size)
    if stage != "student":
        return
    of_now = params.student.batch_size
    for base in _bases(params):
        for batch in ([of_now] if base else []) + _down(of_now):
            yield (*_batches(params, batch, SHARDED in base), *base)


def _batches(params: Params, batch: int, shared: bool) -> Changes:
    """What else keeps the number of samples of a step, with another size of batches; workers who
    share the batches of a step need those of all.
    """
    student = params.student
    times = (
        -(-student.batch_size // batch) * student.accumulate * (student.workers if shared else 1)
    )
    then = (("student.batch_size", batch), ("student.accumulate", times))
    now = (student.batch_size, student.accumulate)
    return tuple(change for change, value in zip(then, now, strict=True) if change[1] != value)


def _bases(params: Params) -> Sequence[Changes]:
    """Further changes, each with those before it."""
    found: list[Changes] = [()]
    if not params.student.gradient_checkpointing:
        found.append((("student.gradient_checkpointing", True),))
    if _can_share(params):
        found.append((*found[-1], SHARDED))
    if params.student.precision == "float32":
        found.append((*found[-1], ("student.precision", "bfloat16")))
    if getattr(params.teacher, "dtype", "") == "float32":
        found.append((*found[-1], ("teacher.dtype", "bfloat16")))
    if getattr(params.method, "trainable", "lora") != "lora":
        found.append((*found[-1], ("method.trainable", "lora")))
    return found


def _can_share(params: Params) -> bool:
    """Whether workers with a copy each could have a part each."""
    student = params.student
    if student.workers < 2 or student.sharding == "full":
        return False
    if student.precision == "float16" or student.optimizer != "adamw":
        return False
    try:
        method_of(params).check_sharding(params.method)
    except InputError:
        return False
    return True


def _halved(key: str, value: int, *also: str) -> Iterator[Changes]:
    for smaller in _down(value):
        yield tuple((name, smaller) for name in (key, *also))


def _down(value: int) -> list[int]:
    found = []
    while value > 1:
        value //= 2
        found.append(value)
    return found


def changed(params: Params, changes: Changes) -> Params:
    """The params with other values."""
    model, data = params_model(), params_dict(params)
    for key, value in changes:
        apply_override(model, data, key.split("."), value)
    return validated(model, data, source="estimate")


def _line(params: Params, stage: str, changes: Changes, now: float, then: float) -> str:
    told = ", ".join(f"{key} {_value(params, key)} -> {_said(value)}" for key, value in changes)
    return f"{stage}: {told}: {size(now)} -> {size(then)}"


def _value(params: Params, key: str) -> str:
    found: Any = params
    for part in key.split("."):
        found = getattr(found, part)
    return _said(found)


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
