"""The most memory that each stage holds: on the device, and on the host beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.common.shapes import rows_at_once
from models.methods.costs import Call, Costs
from tasks.config.schema import Params
from tasks.estimate.blueprint import Blueprint
from tasks.estimate.data import Facts
from tasks.estimate.disk import condition_bytes
from tasks.estimate.networks import Networks
from tasks.estimate.work import VALIDATION_BATCH, Work

REFERENCE = 4000  # real images that a validation compares with (tasks/evaluation/validation.py)


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak; ``phase``: when the device holds the most."""

    device: float
    host: float = 0.0
    phase: str = ""


@dataclass(frozen=True)
class Training:
    """``calls``: those of an update that hold the most for its backward pass; ``update``: its
    role.
    """

    role: str
    calls: tuple[Call, ...]


def teacher_memory(
    params: Params, plan: Blueprint, networks: Networks, work: Sequence[Work]
) -> Memory:
    """A pretrained one is opened whole, on the host; one that is trained is on the device."""
    weights = _bytes(plan)
    encoders = sum(4 * p.numel() for part in plan.encoders.values() for p in part.parameters())
    if params.teacher.source != "train":
        return Memory(0, weights + encoders + plan.parameters * plan.dtype.itemsize, "opening")
    largest = max((each for each in work if each.gradient == "weights"), key=lambda w: w.size or 0)
    cost = networks.cost("teacher", "weights", largest.size, largest.precision)
    # weights, two moments, an average; gradients are in the peak of a step
    return Memory(plan.parameters * 16 + cost.peak_of(largest.batch), phase="training")


def conditions_memory(params: Params, plan: Blueprint) -> Memory:
    """Encoders in float32, and four tensors of the widest layer for one batch."""
    weights = sum(4 * p.numel() for part in plan.encoders.values() for p in part.parameters())
    batch = params.conditions.batch_size
    tokens = max((shape[0] for shape, _ in plan.condition.values() if len(shape) > 1), default=0)
    widest = max(
        (p.shape[0] for part in plan.encoders.values() for n, p in part.named_parameters()
         if p.dim() == 2 and "embed" not in n and "shared" not in n),
        default=0,
    )  # fmt: skip
    shard = params.conditions.shard_size * condition_bytes(plan, 4)
    return Memory(weights + 16 * batch * tokens * widest, weights + 2 * shard, "encoding")


def trajectories_memory(
    params: Params, plan: Blueprint, networks: Networks, work: Sequence[Work], lanes: int
) -> Memory:
    """The teacher, the fine noise of a batch, and a call for ``lanes`` lanes at once."""
    spec = params.trajectories
    rows = max(spec.lane, spec.batch_size // spec.lane * spec.lane)
    state = 4 * plan.state
    noise = rows * (spec.steps + 1) * state
    features = rows * spec.intervals * (spec.depth + 1) * state
    embeddings = rows * condition_bytes(plan, 4)
    call = networks.cost("teacher", "none", None, spec.precision).peak_of(work[0].batch)
    shard = spec.shard_size * (spec.intervals + 1) * state * 1.5
    device = _bytes(plan) + noise + embeddings + 4 * rows * state + lanes * call
    return Memory(device, 2 * noise + features + shard, "sampling")


def student_memory(
    params: Params,
    plan: Blueprint,
    networks: Networks,
    costs: Costs,
    updates: Sequence[Training],
    facts: Facts | None,
) -> Memory:
    """Weights of all roles, and the largest of: a training step, a validation."""
    student, spec = params.student, params.trajectories
    whole, trained = networks.student_weights
    kept = trained if networks.trainable != "full" else whole
    roles = len(costs.optimized)
    own = networks.own_weights
    parts = sharing(params)
    weights = _network(plan) + 4 * own * (roles + ("target" in costs.copies))
    averages = 8 * trained * roles + 4 * trained
    fixed = (weights + averages) / parts + _autoencoder(plan)
    fixed += _gathered(params, plan, roles) if parts > 1 else 0
    step, phase = max(
        (step_bytes(each.calls, networks, costs, params), f"a step of the {each.role}")
        for each in updates
    )
    # flattened and averaged between workers
    step += 8 * trained if student.workers > parts else 0
    rows = rows_at_once(plan.teacher.shape, min(VALIDATION_BATCH, student.validation_samples))
    sampling = 4 * kept / parts + networks.cost("student").peak_of(rows)
    if networks.plan.vae is not None:
        sampling = max(sampling, 4 * kept / parts + _decoding(plan, networks, rows))
    device, phase = max((fixed + step, phase), (fixed + sampling, "a validation"))
    state, data = 4 * plan.state, 4 * int(np.prod(plan.data_shape()))
    batch = student.batch_size * (spec.intervals + 1) * (spec.depth + 2) * state
    real = min(REFERENCE, facts.train if facts is not None else spec.train)
    pictures = (real + student.validation_samples) * data * 1.5
    cached = 0 if costs.recomputes == "call" else spec.train * state // 2
    saved = (4 * kept * roles + averages) / parts
    host = batch + pictures + cached + saved + 4 * kept
    # a worker opens what is divided whole, before it has anything to save
    return Memory(device, max(host, weights) if parts > 1 else host, phase)


def sharing(params: Params) -> int:
    """Among how many workers the student stage's networks are divided."""
    student = params.student
    return max(1, student.workers) if student.sharding == "full" else 1


def _gathered(params: Params, plan: Blueprint, roles: int) -> float:
    """Whole weights at one moment beside a worker's parts: a block, the next one, the rest of each
    network outside its blocks; and the gradient of a block in float32, twice: of it, and to be
    summed.
    """
    network = plan.teacher.network
    blocks = [sum(p.numel() for p in b.parameters()) for b in plan.teacher.sharded_blocks(network)]
    rest = sum(p.numel() for p in network.parameters()) - sum(blocks)
    largest = max([*blocks, rest])
    itemsize = 4 if params.student.precision == "float32" else 2
    return itemsize * (2 * largest + (roles + 1) * rest) + 8 * largest


def largest_size(calls: Sequence[Call]) -> int:
    """The largest that the calls name, 0 if they name none."""
    return max((call.size or 0 for call in calls), default=0)


def step_bytes(calls: Sequence[Call], networks: Networks, costs: Costs, params: Params) -> float:
    """What one update holds beyond weights and optimizers: what all calls keep for the backward
    pass, and the one that needs the most beside it.
    """
    student = params.student
    rows, again = student.batch_size, student.gradient_checkpointing
    held, beside, largest = 0.0, 0.0, largest_size(calls)
    for call in calls:
        if call.gradient == "none" and call.size is not None and call.size < largest:
            continue  # it holds nothing, and less than the others at any moment
        if call.network in ("encode", "decode"):
            beside = max(beside, _decoding(networks.plan, networks, rows))
            continue
        cost = networks.cost(call.network, call.gradient, call.size, student.precision)
        count = rows * call.rows
        keeps = cost.held_by(count) if call.gradient != "none" else 0.0
        if again and costs.recomputes == "call" and call.network == "student":
            keeps = 8.0 * networks.plan.state * count  # its inputs alone
        held += keeps
        beside = max(beside, cost.peak_of(count) - keeps)
    return held + beside


def evaluation_memory(
    params: Params,
    plan: Blueprint,
    networks: Networks,
    double: int,
    samplers: int,
    facts: Facts | None,
) -> Memory:
    """Teacher, student and its untrained form, and a call for one batch."""
    settings, spec = params.evaluation, params.trajectories
    batch = min(settings.batch_size, settings.samples)
    calls = [
        networks.cost("teacher").peak_of(batch * double),
        networks.cost("student").peak_of(batch),
    ]
    if plan.vae is not None:
        calls.append(_decoding(plan, networks, batch))
    data = int(np.prod(plan.data_shape()))
    real = facts.holdout if facts is not None else spec.validation - settings.samples
    held = (
        4 * data * (2 * real + 2.5 * settings.samples)
        + samplers * min(256, settings.samples) * data
    )
    paths = spec.validation * (spec.intervals + 1) * 4 * plan.state
    weights = _bytes(plan) + 2 * 4 * plan.parameters
    return Memory(weights + max(calls), held + paths, "sampling")


def _decoding(plan: Blueprint, networks: Networks, rows: int) -> float:
    return networks.cost("decode").peak_of(rows_at_once(plan.data_shape()[1:], rows))


def _bytes(plan: Blueprint) -> float:
    """Of the teacher and its autoencoder."""
    return _network(plan) + _autoencoder(plan)


def _network(plan: Blueprint) -> float:
    return plan.parameters * plan.dtype.itemsize


def _autoencoder(plan: Blueprint) -> float:
    return 0 if plan.vae is None else 4 * sum(p.numel() for p in plan.vae.parameters())
