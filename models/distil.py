"""Distil a teacher in memory, in one call: for notebooks and for reading.

The pipeline does the same in stages that survive a kill, keep the best weights by a validation
score, and are tracked; see flows/distill.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.methods.base import ImageBatch, MethodContext, PathBatch
from models.methods.export import export_pipeline
from models.methods.registry import config_class, method_class
from models.sampling.chain import Chain
from models.sampling.grids import adaptive_grid
from models.sampling.signature import bases
from models.sampling.trajectories import (
    PathSpec,
    kept_features,
    movement,
    path_condition,
    path_features,
    teacher_paths,
)
from models.teachers.base import Denoiser
from models.training.loop import Batches, LoopConfig, TrainState, train


def distil(
    teacher: Denoiser,
    method: str = "sigdeg",
    *,
    steps: int = 200,
    paths: int = 256,
    batch_size: int = 16,
    learning_rate: float = 1e-5,
    fine_steps: int = 100,
    intervals: int = 20,
    seed: int = 0,
    guidance: float = 1.0,
    **settings: Any,
) -> Any:
    """A student pipeline of ``teacher``; ``student.save_pretrained(folder)`` keeps it.

    ``method``: a name of models/methods/registry.py, ``settings``: its own, such as ``nfe=(5, 2)``.
    ``paths`` trajectories of ``fine_steps`` network calls each are made and kept in memory, as
    states at the ends of ``intervals`` coarse intervals. ``steps`` optimizer steps follow; the
    result has the averaged weights of the last one. There are no real images here, so what needs
    them is switched off by ``calibrate=False`` (sigdeg) or ``dmd={"gate": "off"}`` (swd).

    Raises pydantic's ValidationError for settings that the method does not have, and InputError
    for a teacher that does not fit them or a setting that needs real images.
    """
    if teacher.condition_kind == "prompts":
        raise InputError(
            "distil(): this teacher takes prompts, and its student's folder needs their encoders; "
            "run the pipeline (make run) with teacher.path and conditions.prompts"
        )
    config = config_class(method).model_validate({"kind": method, **settings})
    eta = 0.0 if getattr(config, "deterministic_paths", False) else 1.0
    spec = path_spec(teacher, fine_steps, intervals, seed, guidance, eta=eta)
    cache = teacher_paths(teacher, spec, "train", 0, paths)
    context = MethodContext(
        teacher,
        config,
        spec,
        guidance=guidance,
        total_steps=steps,
        seed=seed,
        tools=MemoryTools(cache["Y"][:, -1]),
    )
    kind = method_class(method)
    torch.manual_seed(seed)  # new layers of the student are drawn from torch's own generator
    trained = kind(replace(context, diagnostics=kind.prepare(context)))
    rates, warmup = trained.learning_rates, min(20, steps // 4)
    loop = LoopConfig(steps, learning_rate, rates, warmup=warmup, ema=0.99, seed=seed)
    state = TrainState(trained, loop)
    # The features that the teacher's noise was made from: equal keys draw equal numbers.
    cache["xi"] = path_features(
        seed, "train", range(paths), kept_features(spec.parts), teacher.shape
    ).numpy()
    batches = memory_batches(teacher, cache, trained.needs, batch_size, seed)
    for _ in train(trained, batches, state, device=teacher.device):
        pass
    return export_pipeline(trained.pipeline, state.ema_state("student"))


class MemoryTools:
    """What a method may look at before training (models.methods.base.Tools): the teacher's own
    samples, nothing else. ``states``: clean states (n, *shape).
    """

    def __init__(self, states: np.ndarray):
        self.states = torch.from_numpy(states)

    def teacher_states(self, count: int) -> Tensor:
        return self.states[:count]

    def training_images(self) -> NoReturn:
        raise InputError(
            "distil() has no real images to compare with: set calibrate=False (sigdeg) or "
            "dmd={'gate': 'off'} (swd), or run the pipeline (make run), which has them"
        )

    validation = extractor = training_images

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None


def path_spec(
    teacher: Denoiser,
    fine_steps: int,
    intervals: int,
    seed: int,
    guidance: float,
    depth: int = 2,
    eta: float = 1.0,
) -> PathSpec:
    """The teacher's chain of ``fine_steps`` (DDPM for ``eta`` 1, DDIM for 0) with an adaptive
    coarse grid.
    """
    chain = Chain(teacher.schedule.levels(fine_steps), eta)
    pilot = PathSpec(chain, np.zeros(0), (), seed, guidance=guidance)
    grid = adaptive_grid(movement(teacher, pilot), intervals)
    return PathSpec(chain, grid, bases(chain, grid, depth), seed, guidance=guidance)


def memory_batches(
    teacher: Denoiser, cache: dict[str, np.ndarray], needs: str, batch_size: int, seed: int
) -> Batches:
    """Random rows of paths in memory; InputError comes from the method where they do not fit."""
    arrays = {name: torch.from_numpy(array) for name, array in cache.items()}

    def batch(step: int, micro: int, update: int) -> PathBatch | ImageBatch:
        generator = generator_for("cpu", seed, 3, step, micro, update)
        rows = torch.randint(len(arrays["Y"]), (batch_size,), generator=generator)
        labels = arrays["labels"][rows] if teacher.conditional else None
        condition, Y = path_condition(teacher, labels), arrays["Y"][rows].to(teacher.device)
        if needs == "paths":
            return PathBatch(Y, arrays["xi"][rows].to(teacher.device), condition, step)
        return ImageBatch(Y[:, -1], condition, step)

    return batch
