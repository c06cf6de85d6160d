"""A whole job's estimate: network evaluations, hours, memory and disk of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from models.common.errors import InputError
from models.methods.base import MethodContext
from models.methods.costs import Costs, guided
from models.sampling import baselines
from tasks.config.schema import Params
from tasks.estimate import disk, memory
from tasks.estimate.blueprint import Blueprint, blueprint
from tasks.estimate.data import Facts, Prompts, dataset_facts, prompts_of
from tasks.estimate.disk import Disk
from tasks.estimate.memory import Memory, Training, largest_size
from tasks.estimate.networks import Networks
from tasks.estimate.parts import json_of
from tasks.estimate.work import (
    Work,
    evaluation_work,
    evaluations,
    method_context,
    student_work,
    teacher_work,
    trajectories_work,
    uses_real,
)
from tasks.methods.context import method_of


@dataclass(frozen=True)
class Job:
    """A job taken apart: its teacher, its method's costs, the calls of every stage."""

    params: Params
    plan: Blueprint
    networks: Networks
    costs: Costs
    context: MethodContext
    facts: Facts | None
    prompts: Prompts | None
    work: dict[str, list[Work]]
    samplers: int
    notes: tuple[str, ...] = ()
    tried: dict[Any, Networks] = field(default_factory=dict)

    def evaluations(self, stage: str) -> tuple[int, int]:
        """(network evaluations of one sample, those with gradients of weights)."""
        return evaluations(self.work.get(stage, []))

    def flops(self, stage: str) -> float:
        """Of all its calls."""
        return sum(
            each.rows * self.networks.flops(each.network, each.gradient, each.size)
            for each in self.work.get(stage, [])
        )

    def disk(self, stage: str) -> Disk:
        return {
            "dataset": lambda: disk.dataset_disk(self.facts),
            "teacher": lambda: disk.teacher_disk(self.params, self.plan),
            "conditions": lambda: disk.conditions_disk(self.params, self.plan, self.prompts),
            "trajectories": lambda: disk.trajectories_disk(self.params, self.plan),
            "student": lambda: disk.student_disk(self.params, self.plan, self.networks, self.costs),
            "evaluation": lambda: disk.evaluation_disk(self.params, self.plan, self.samplers),
        }[stage]()

    def memory(self, stage: str, lanes: int = 1) -> Memory:
        """Of tensors alone, without what packages take. ``lanes``: of trajectories at once."""
        params, plan, networks, work = self.params, self.plan, self.networks, self.work
        if stage == "teacher":
            return memory.teacher_memory(params, plan, networks, work[stage])
        if stage == "conditions" and plan.encoders:
            return memory.conditions_memory(params, plan)
        if stage == "trajectories":
            return memory.trajectories_memory(params, plan, networks, work[stage], lanes)
        if stage == "student":
            return memory.student_memory(
                params, plan, networks, self.costs, self.updates(), self.facts
            )
        if stage == "evaluation":
            double = max(1, work["trajectories"][0].batch // params.trajectories.lane)
            return memory.evaluation_memory(
                params, plan, networks, double, self.samplers, self.facts
            )
        return Memory(0)

    def with_params(self, params: Params) -> Job:
        """The same job with other sizes of batches, checkpointing, adapters or dtype: for memory
        alone, its calls are not counted anew.
        """
        dtype = getattr(torch, getattr(params.teacher, "dtype", "float32"))
        plan = replace(self.plan, dtype=dtype)
        networks = _networks(params, plan, self.costs)
        # simulated calls are kept, whatever was tried before
        networks = self.tried.setdefault((*networks.settings, str(dtype)), networks)
        return replace(self, params=params, plan=plan, networks=networks)

    def updates(self) -> Sequence[Training]:
        """The different updates that training makes, of each role those at its largest size."""
        steps = range(self.params.student.steps)
        # every kind of update comes among the first, the last and a hundred between
        chosen = [*steps[:16], *steps[:: max(1, len(steps) // 100)], *steps[-16:]]
        found = {
            (role, tuple(calls)) for step in chosen for role, calls in self.costs.updates(step)
        }
        largest: dict[str, int] = {}
        for role, calls in found:
            largest[role] = max(largest.get(role, 0), largest_size(calls))
        kept = sorted(each for each in found if largest_size(each[1]) == largest[each[0]])
        return [Training(*each) for each in kept] or [Training("student", ())]


def take_apart(params: Params, root: Path) -> Job:
    """The job that the params mean. Raises InputError for a teacher or data that cannot be known,
    and for a method that does not tell its costs.
    """
    notes: list[str] = []
    facts = _facts(params, root, notes)
    plan = blueprint(params, root, facts)
    prompts = prompts_of(params, root)
    if prompts is not None and not prompts.exact:
        notes.append(
            f"{params.conditions.prompts} is not here: {prompts.train + prompts.holdout:,} prompts "
            "are assumed, as many as the trajectories can use"
        )
    context = method_context(params, plan)
    method = method_of(params)
    if params.student.sharding == "full":
        method.check_sharding(params.method)
    costs = method.costs(context, uses_real(method, params, plan, facts))
    if costs is None:
        raise InputError(
            f"method.kind = {params.method.kind}: it does not tell its costs; expected a method "
            "with `costs` (docs/extending.md)"
        )
    if getattr(params.trajectories.grid, "kind", "") == "adaptive" and "frozen" in costs.copies:
        notes.append("an adaptive grid is known after its pilot runs; an even one stands for it")
    networks = _networks(params, plan, costs)
    equal = equal_calls(params, costs, networks, context)
    rivals = rival_calls(params, root, notes)
    work = {
        "teacher": teacher_work(params, plan),
        "trajectories": trajectories_work(params, context),
        "student": student_work(params, costs, method.needs),
        "evaluation": evaluation_work(params, costs, context, equal, rivals),
    }
    samplers = count_samplers(params, context, equal) + len(rivals)
    return Job(params, plan, networks, costs, context, facts, prompts, work, samplers, tuple(notes))


def _networks(params: Params, plan: Blueprint, costs: Costs) -> Networks:
    again, method = params.student.gradient_checkpointing, params.method
    trainable, rank = getattr(method, "trainable", "full"), getattr(method, "lora_rank", 16)
    recomputed, precision = costs.recomputes if again else None, params.student.precision
    return Networks(plan, costs.channels, trainable, rank, recomputed, precision)


def _facts(params: Params, root: Path, notes: list[str]) -> Facts | None:
    try:
        return dataset_facts(params, root)
    except InputError as error:
        if params.teacher.source == "train":
            raise
        notes.append(f"the dataset is left out: {error}")
        return None


def equal_calls(
    params: Params, costs: Costs, networks: Networks, context: MethodContext
) -> list[int]:
    """Further numbers of the rivals' calls, as tasks.evaluation.sample_generator finds them."""
    steps = params.evaluation.nfe or params.method.nfe
    one = networks.flops("teacher") * guided(context)
    if not one:
        return []
    found = {
        nfe: sum(c.rows * networks.flops(c.network, "none", c.size) for c in costs.sampling(nfe))
        for nfe in steps
    }
    calls = {max(1, round(cost / one)) for nfe, cost in found.items() if round(cost / one) < nfe}
    return sorted(calls - set(steps), reverse=True)


def rival_calls(params: Params, root: Path, notes: list[str]) -> list[int]:
    """The numbers of calls of the students in `evaluation.rivals`, as their records say; a note
    for one without a record.
    """
    found: list[int] = []
    for folder in params.evaluation.rivals:
        steps = json_of(root / folder / "student.json").get("nfe")
        if not steps:
            notes.append(f"evaluation.rivals: {folder} has no student.json and is left out")
        found += steps or []
    return found


def count_samplers(params: Params, context: MethodContext, equal: Sequence[int]) -> int:
    """Rows of the evaluation's table: teacher, real data, student, its untrained form, rivals."""
    settings: Any = params.evaluation
    steps = settings.nfe or params.method.nfe
    rivals = sum(bool(baselines.variants(context.teacher, name)) for name in settings.baselines)
    return 2 + 2 * len(steps) + rivals * (len(steps) + len(equal))
