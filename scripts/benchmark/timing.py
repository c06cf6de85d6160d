"""Milliseconds of every sampler of a domain. They take turns, round by round, and the medians are
told: one after the other they differ tenfold on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.dvc.repro import STAGES
from flows.dvc.worktree import Workspace
from models.methods.export import open_student
from models.sampling import baselines
from models.teachers.base import Denoiser
from scripts.benchmark.plan import RESULTS, Run
from scripts.benchmark.runs import RECORD, configure, machine, run_stage
from tasks.config.schema import Params
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import guidance_of
from tasks.utils.atomic import atomic_write_json, read_json
from tasks.utils.device import pick_device
from tasks.utils.progress import progress

FILE = "timing.json"
UNTRAINED = "untrained"
ROUNDS = 7
BATCH = 32
Samplers = dict[tuple[str, int], Callable[[], object]]  # by row and number of calls


def time_domain(
    work: Workspace, rivals: Run, students: Sequence[Run], calls: Sequence[int]
) -> None:
    """Write the domain's timing.json, unless it has the times of these very results.

    ``rivals``: the run whose params name the training-free samplers; ``students``: finished runs
    whose students were kept.
    """
    place = work.project / RESULTS / rivals.domain / FILE
    of = {run.job: _inputs(work.project, run) for run in (rivals, *students)}
    here = machine()
    before = read_json(place)
    if before is not None and before["of"] == of and before["device"] == here["device"]:
        return
    params = configure(work, rivals)
    # all that the teacher needs, from DVC's cache
    for stage in STAGES[: STAGES.index("trajectories")]:
        run_stage(work.root, stage)
    device = pick_device()
    teacher = load_teacher(work.root, device)
    # the training-free samplers' run has a student that no step has trained
    folders = {UNTRAINED: rivals.folder(work.project) / "student"}
    folders |= {run.job: run.folder(work.project) / "student" for run in students}
    samplers = samplers_of(teacher, params, folders, calls, device)
    found: dict[str, dict[str, list[float]]] = {}
    for (row, nfe), times in in_turns(samplers, device).items():
        quartiles = np.percentile(np.array(times) / BATCH, [50, 25, 75])
        found.setdefault(row, {})[str(nfe)] = [round(float(q), 4) for q in quartiles]
    about = {"commit": work.commit, "batch": BATCH, "rounds": ROUNDS, "of": of, **here}
    atomic_write_json(place, about | {"ms": found})


def _inputs(project: Path, run: Run) -> dict[str, str]:
    record: dict[str, Any] = read_json(run.folder(project) / RECORD) or {}
    return dict(record.get("inputs", {}))


def samplers_of(
    teacher: Denoiser,
    params: Params,
    folders: Mapping[str, Path],
    calls: Sequence[int],
    device: torch.device,
) -> Samplers:
    """The training-free samplers, ``teacher`` (one call), and each student at the numbers of steps
    that it was made for, on one batch of noise.
    """
    network, guidance = teacher.network, guidance_of(params.trajectories)
    teacher.embed_guidance(guidance)
    noise = torch.randn((BATCH, *teacher.shape), generator=torch.Generator().manual_seed(0))
    noise, condition = noise.to(device), teacher.default_condition(BATCH)
    generator = torch.Generator().manual_seed(1)
    found: Samplers = {
        ("teacher", 1): lambda: teacher.predict(noise, torch.tensor(500.0), condition, guidance)
    }
    for name in params.evaluation.baselines:
        if baselines.why_not(teacher, name) is None:
            for nfe in calls:
                found[name, nfe] = lambda name=name, nfe=nfe: baselines.sample_baseline(
                    teacher, name, nfe, noise, condition, guidance, generator
                )
    networks = [network]
    for job, folder in folders.items():
        student = open_student(folder, device=device)
        networks.append(student.unet)
        for nfe in student.nfe:
            found[job, nfe] = lambda student=student, nfe=nfe: student.rollout(
                noise, None, condition, nfe, generator
            )
    for each in networks:
        each.eval()
        if device.type == "cpu":  # as the evaluation has them
            each.to(memory_format=torch.channels_last)
    return found


@torch.inference_mode()
def in_turns(
    samplers: Samplers, device: torch.device, rounds: int = ROUNDS
) -> dict[tuple[str, int], list[float]]:
    """ms of a batch, by sampler, of every round but a first one that warms up; every second round
    goes backwards, so that none is always after the same other.
    """
    times: dict[tuple[str, int], list[float]] = {key: [] for key in samplers}
    with progress("timing", (rounds + 1) * len(samplers)) as advance:
        for number in range(rounds + 1):
            for key in _order(list(samplers), number):
                start = _now(device)
                samplers[key]()
                if number:
                    times[key].append(1000 * (_now(device) - start))
                advance()
    return times


def _order(keys: list[tuple[str, int]], number: int) -> Iterator[tuple[str, int]]:
    return reversed(keys) if number % 2 else iter(keys)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
