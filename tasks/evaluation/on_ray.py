"""Samples made by Ray actors, a batch at a time on each: `evaluation.workers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.common.errors import InputError
from tasks.config.external_paths import judging_files, worker_files
from tasks.config.schema import Params, params_dict, params_from_dict
from tasks.evaluation.load import load_inputs
from tasks.evaluation.sample_generator import MakeBatches, SampleGenerator
from tasks.utils.stage_names import STAGES

if TYPE_CHECKING:
    from tasks.training.node_folder import ProjectFolder


@dataclass(frozen=True)
class Job:
    """One batch: its place among those asked for, the sampler's name and number of calls."""

    place: int
    name: str
    nfe: int
    batch: slice


@dataclass(frozen=True)
class Made:
    """Images (n, C, H, W) of a job on the CPU, and the ms per image."""

    place: int
    images: Tensor
    milliseconds: float


@contextmanager
def batches_on_ray(params: Params, root: Path) -> Iterator[MakeBatches | None]:
    """What makes batches on `evaluation.workers` actors, for the block; None for 0 of them.

    Every actor reads the earlier stages' results, in `root` or in its node's copy, and stays for
    the whole evaluation. A batch has its own seed, so it does not matter who makes it.
    """
    if not params.evaluation.workers:
        yield None
        return
    from tasks.training.ray_cluster import Actors, actor_class, connect, folder_for

    results = STAGES[: STAGES.index("evaluation")]
    needs = [*worker_files(params, root, results), *judging_files(params, root)]
    with connect(params.evaluation.workers) as gpus, folder_for(root, needs) as folder:
        actor, given = actor_class(_RaySampler, gpus), (folder, params_dict(params))
        actors = Actors(lambda: actor.remote(*given), params.evaluation.workers)

        def make(name: str, nfe: int, batches: list[slice]) -> Iterator[tuple[Tensor, float]]:
            jobs = [Job(place, name, nfe, batch) for place, batch in enumerate(batches)]
            yield from in_order(actors.make(jobs))

        yield make


def in_order(results: Iterator[Made | InputError]) -> Iterator[tuple[Tensor, float]]:
    """Images and times by place, each as soon as those before it are there; raises an InputError
    among them once all are read.
    """
    early: dict[int, Made] = {}
    errors, wanted = [], 0
    for result in results:
        if isinstance(result, InputError):
            errors.append(result)
            continue
        early[result.place] = result
        while wanted in early and not errors:
            made = early.pop(wanted)
            yield made.images, made.milliseconds
            wanted += 1
    if errors:
        raise errors[0]


def _silent(n: int = 1, **fields: object) -> None:
    """The driver tells the progress."""


class _RaySampler:
    def __init__(self, folder: ProjectFolder, params: dict[str, Any]) -> None:
        from tasks.training.ray_cluster import use_worker_threads

        use_worker_threads()
        root = folder.open().root
        settings = params_from_dict(params, root)
        inputs = load_inputs(settings, root)
        self.generator = SampleGenerator(inputs, settings.evaluation, _silent)

    def make(self, job: Job) -> Made | InputError:
        """An InputError is a result: Ray would wrap it, with its traceback for a message."""
        try:
            sampler = self.generator.inputs.sampler(job.name, job.nfe)
            images, milliseconds = self.generator.batch(sampler, job.batch)
        except InputError as error:
            return error
        return Made(job.place, images, milliseconds)
