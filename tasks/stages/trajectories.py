"""Trajectories stage: teacher paths along noise of known partial signatures, sharded, into
data/trajectories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import numpy as np
import torch

from models.common.errors import InputError
from models.sampling.trajectories import kept_features, teacher_paths
from models.teachers.base import Denoiser
from tasks.config.extensions import load_extensions
from tasks.config.external_paths import worker_files
from tasks.config.schema import Params
from tasks.config.trajectories import Trajectories
from tasks.data.conditions import conditions_name
from tasks.data.shards import publish, usable_shard, write_shard
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import guidance_of, path_spec
from tasks.utils.atomic import atomic_write_json, read_json
from tasks.utils.cli import stage_main
from tasks.utils.device import pick_device
from tasks.utils.failpoints import reach
from tasks.utils.locks import scratch_lock
from tasks.utils.progress import Advance, progress
from tasks.utils.scratch import scratch_for

if TYPE_CHECKING:
    from tasks.training.node_folder import ProjectFolder

RUNTIME_ONLY = {"train", "validation", "workers", "batch_size"}


@dataclass(frozen=True)
class Job:
    """One shard to make: rows ``start`` to ``stop`` of ``split``, into ``folder``."""

    split: str
    start: int
    stop: int
    folder: Path


def run(params: Params, root: Path) -> None:
    """Write data/trajectories; shards finished before a kill are kept in the scratch folder and
    used.
    """
    spec = params.trajectories
    teacher = load_teacher(root)
    _check(spec, teacher)
    identity = spec.model_dump(mode="json", exclude=RUNTIME_ONLY)
    prompts = conditions_name(root) if teacher.condition_kind == "prompts" else None
    scratch = scratch_for(root, "trajectories", identity, teacher.fingerprint(), prompts)
    points = grid_points(spec, teacher.to(pick_device()), scratch)
    jobs = {
        split: _jobs(scratch, split, count, spec.shard_size)
        for split, count in _counts(spec).items()
    }
    with scratch_lock(scratch):
        missing = [
            job for split in jobs.values() for job in split if usable_shard(job.folder) is None
        ]
        rows = sum(job.stop - job.start for job in missing)
        with progress("trajectories", rows * spec.steps) as advance:
            for _ in _make(root, params, missing, teacher, points, advance):
                pass
        kept = kept_features(path_spec(spec, teacher, points).parts)
        meta = identity | {
            "grid_points": points,
            "teacher": teacher.fingerprint(),
            "conditions": prompts,
            "shape": list(teacher.shape),
            "kept": kept.tolist(),  # with seed and shape, all that the features are drawn from
        }
        names = {
            split: [str(job.folder.relative_to(scratch)) for job in listed]
            for split, listed in jobs.items()
        }
        publish(scratch, root / "data" / "trajectories", meta, names)
    print(
        f"trajectories: {spec.train} train + {spec.validation} validation, {spec.steps} steps; "
        f"{rows} are new"
    )


def grid_points(spec: Trajectories, teacher: Denoiser, scratch: Path) -> list[int]:
    """The coarse grid of this cache, kept in its scratch folder so that a rerun on another device
    keeps it.
    """
    kept = scratch / "grid.json"
    points = read_json(kept)
    if points is None:
        points = path_spec(spec, teacher).grid.tolist()
        atomic_write_json(kept, points)
    return [int(point) for point in points]


def _counts(spec: Trajectories) -> dict[str, int]:
    return {"train": spec.train, "validation": spec.validation}


def _check(spec: Trajectories, teacher: Denoiser) -> None:
    classes, kind = teacher.num_classes, teacher.condition_kind
    if spec.classes is not None and kind == "prompts":
        raise InputError(
            f"trajectories.classes = {list(spec.classes)}: this teacher takes prompts; use null, "
            "and choose them by conditions.prompts"
        )
    if spec.classes is not None and classes is None:
        raise InputError(
            f"trajectories.classes = {list(spec.classes)}: this teacher is unconditional; use null"
        )
    if spec.classes is not None and classes is not None and max(spec.classes) >= classes:
        raise InputError(
            f"trajectories.classes = {list(spec.classes)}: expected classes in 0..{classes - 1}"
        )
    if spec.guidance_range is not None:
        teacher.embed_guidance(guidance_of(spec))  # refuses one whose students cannot take it
    if guidance_of(spec) != 1.0 and not teacher.can_guide:
        raise InputError(
            f"trajectories.guidance = {spec.guidance}: this teacher has no null condition; use 1.0"
        )


def _jobs(scratch: Path, split: str, count: int, size: int) -> list[Job]:
    return [
        Job(
            split,
            start,
            min(start + size, count),
            scratch / split / f"{start:08d}-{min(start + size, count):08d}",
        )
        for start in range(0, count, size)
    ]


def _make(
    root: Path,
    params: Params,
    jobs: list[Job],
    teacher: Denoiser,
    points: list[int],
    advance: Advance,
) -> Iterator[Job]:
    """Make the shards, here or on Ray workers; yields each job when its shard is whole on disk."""
    spec = params.trajectories
    if spec.workers and jobs:
        yield from _on_ray(root, params, jobs, points, advance)
        return
    maker = ShardMaker(spec, teacher.to(pick_device()), points)
    for job in jobs:
        maker.make(job, advance)
        reach("trajectories.shard")
        yield job


class ShardMaker:
    """Makes shards with one teacher; lives in the stage's process or in a Ray actor."""

    def __init__(self, spec: Trajectories, teacher: Denoiser, points: Sequence[int]):
        self.spec, self.teacher = spec, teacher
        self.paths = path_spec(spec, teacher, points)
        if teacher.device.type == "cpu":
            teacher.network.to(memory_format=torch.channels_last)
        if spec.compile:
            teacher.network.compile()

    def make(self, job: Job, advance: Any = None) -> Job:
        arrays = teacher_paths(
            self.teacher,
            self.paths,
            job.split,
            job.start,
            job.stop,
            batch_size=self.spec.batch_size,
            advance=advance,
        )
        reach("trajectories.paths")
        kind = np.dtype(self.spec.dtype)
        largest = max(float(np.abs(a).max()) for a in arrays.values() if a.dtype == np.float32)
        if largest > np.finfo(kind).max:
            raise InputError(
                f"trajectories.dtype = {kind}: states reach {largest:.3g}, more than it holds; use "
                "float32"
            )
        write_shard(
            job.folder,
            {n: a.astype(kind) if a.dtype == np.float32 else a for n, a in arrays.items()},
        )
        return job


def _on_ray(
    root: Path, params: Params, jobs: list[Job], points: list[int], advance: Advance
) -> Iterator[Job]:
    from tasks.training.ray_cluster import actor_class, connect, folder_for, spread

    spec = params.trajectories
    needs = worker_files(params, root, ("teacher", "conditions"))
    with connect(spec.workers) as gpus, folder_for(root, needs) as folder:
        actor = actor_class(_RayMaker, gpus)
        given = (folder, spec.model_dump(mode="json"), params.extensions, points)
        for job in spread(lambda: actor.remote(*given), spec.workers, jobs):
            advance((job.stop - job.start) * spec.steps)
            yield job


class _RayMaker:
    def __init__(
        self,
        folder: ProjectFolder,
        spec: dict[str, Any],
        extensions: Sequence[str],
        points: list[int],
    ):
        from tasks.training.ray_cluster import use_worker_threads

        use_worker_threads()
        self.node = folder.open()
        load_extensions(extensions, self.node.root)
        settings = Trajectories.model_validate(spec)
        self.maker = ShardMaker(settings, load_teacher(self.node.root).to(pick_device()), points)

    def make(self, job: Job) -> Job:
        """The shard, whole on the driver's disk."""
        with self.node.made(job.folder) as here:
            self.maker.make(replace(job, folder=here))
        return job


if __name__ == "__main__":
    stage_main(run)
