"""Making the results: every run in a git worktree at HEAD that shares the project's DVC cache,
unfinished work and measurements, stage by stage. What is there already is not done again.
"""

from __future__ import annotations

import datetime
import logging
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.dvc import experiments, fingerprints
from flows.dvc import repro as pipeline
from flows.dvc.params_file import PARAMS, write_preset
from flows.dvc.worktree import Workspace
from flows.subprocess_stream import stream
from models.common.errors import InputError
from models.methods.export import open_student
from scripts.benchmark.plan import Run
from tasks.config.external_paths import local_paths
from tasks.config.schema import Params
from tasks.data.trajectories import guidance_of
from tasks.utils.atomic import atomic_dir, atomic_write_json, read_json
from tasks.utils.cli import INPUT_ERROR
from tasks.utils.resource_usage import measurement

logger = logging.getLogger(__name__)
RECORD, METRICS, TABLE = "result.json", "metrics.json", "table.csv"
COSTS = ("teacher", "trajectories", "student")
PACKAGES = ("torch", "diffusers")


class StageFailed(RuntimeError):
    """A stage's program ended badly, and not because of the input."""


@dataclass(frozen=True)
class State:
    """What there is of a run: its record, and the parts of its inputs that have changed since.

    ``record`` None: it has not been run.
    """

    record: dict[str, Any] | None
    changed: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.record is not None and not self.changed


def configure(work: Workspace, run: Run) -> Params:
    """Compose the run's params.yaml in the worktree, and bring what it points at there."""
    texts = list(run.overrides)
    params, _ = write_preset(work.root, run.preset, texts)
    paths = local_paths(params)
    for path in paths.values():
        _link(work, path)
    experiments.check_inputs(work, paths)
    if found := fingerprints.digests(work.project, work.root, params):
        params, _ = write_preset(work.root, run.preset, [*texts, *found])
    return params


def _link(work: Workspace, path: str) -> None:
    """Let the worktree see data of the project that is in no commit, such as icon packs; its
    content is then among the run's inputs (flows/dvc/fingerprints.py).
    """
    here, there = work.project / path, work.root / path
    tracked = there.exists() or (work.root / f"{path}.dvc").is_file()
    if Path(path).is_absolute() or tracked or not here.exists():
        return
    there.parent.mkdir(parents=True, exist_ok=True)
    there.symlink_to(here.resolve())


def state_of(work: Workspace, run: Run) -> State:
    """The run's state, for the code and the params that :func:`configure` has left in the
    worktree.
    """
    record = read_json(run.folder(work.project) / RECORD)
    if record is None:
        return State(None)
    return State(
        record, tuple(fingerprints.changed(fingerprints.inputs_of(work.root), record["inputs"]))
    )


def make(work: Workspace, run: Run) -> None:
    """Bring the run's results up to date, unless they are.

    Raises InputError with the stage's own line, or StageFailed; the next call goes on from the
    finished stages, and within a stage from its checkpoints.
    """
    params = configure(work, run)
    state = state_of(work, run)
    if state.done:
        logger.info("%s: up to date", run.name)
        return
    if state.changed:
        parts = ", ".join(state.changed)
        logger.info("%s: stale (other %s), is run again", run.name, parts)
    for stage in pipeline.STAGES:
        if pipeline.outdated(work.root, stage):
            logger.info("%s: %s", run.name, stage)
            run_stage(work.root, stage)
    keep(work, run, params)
    logger.info("%s: done", run.name)


def run_stage(root: Path, stage: str) -> None:
    """One DVC stage as its own process, which ends with this one."""
    command = [sys.executable, "-m", "flows.dvc.repro", stage, pipeline.WITH_PARENT]
    last: list[str] = []
    status = stream(command, root, os.environ, lambda line: last.append(line))
    if status == INPUT_ERROR:
        errors = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
        raise InputError(errors[-1] if errors else f"stage {stage} refused its input")
    if status:
        ended = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
        raise StageFailed(f"stage {stage} {ended}: {last[-1] if last else 'no output'}")


def keep(work: Workspace, run: Run, params: Params) -> None:
    """Copy what the page needs out of the worktree, whole or not at all."""
    data = work.root / "data"
    with atomic_dir(run.folder(work.project)) as folder:
        for name in (METRICS, TABLE):
            shutil.copyfile(data / "evaluation" / name, folder / name)
        shutil.copyfile(data / "student" / "history.csv", folder / "history.csv")
        shutil.copyfile(work.root / PARAMS, folder / PARAMS)
        if run.first:
            shutil.copytree(data / "student", folder / "student")
        atomic_write_json(folder / RECORD, record_of(work, run, params))


def record_of(work: Workspace, run: Run, params: Params) -> dict[str, Any]:
    """Where the figures come from and what they cost, JSON-ready."""
    costs = {stage: measurement(work.root, stage) for stage in COSTS}
    return {
        "preset": run.preset,
        "overrides": list(run.overrides),
        "seed": run.seed,
        "commit": work.commit,
        "inputs": fingerprints.inputs_of(work.root),
        "finished": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **machine(),
        "cost": costs,
        "trajectories": trajectory_calls(params),
        "teacher_calls": params.trajectories.steps,
        "calls": student_calls(work.root),
    }


def student_calls(root: Path) -> dict[str, int]:
    """Network calls of the student by its number of steps; they may be more than the steps."""
    student = open_student(root / "data" / "student", device="cpu")
    return {str(nfe): int(student.network_calls(nfe)) for nfe in student.nfe}


def machine() -> dict[str, Any]:
    """What figures of speed, and last digits of others, depend on."""
    import torch

    gpu = torch.cuda.is_available()
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {capability}",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
    }


def trajectory_calls(params: Params) -> int:
    """Samples that pass through the teacher to make the trajectories: the fine chain of every
    path, and one lane of pilot paths for an adaptive grid; twice with guidance.
    """
    own = params.trajectories
    pilot = own.lane if own.grid.kind == "adaptive" else 0
    return (own.train + own.validation + pilot) * own.steps * (1 if guidance_of(own) == 1.0 else 2)
