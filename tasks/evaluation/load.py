"""Load what the evaluation compares from the earlier stages' results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.export import open_student as load_student
from models.methods.export import with_network
from models.methods.sigdeg.method import SigDEGConfig, build_pipeline, make_step_schedule
from models.methods.swd.pipeline import SwDPipeline
from models.sampling.baselines import BASELINES
from models.teachers.base import Denoiser
from tasks.config.evaluation import Reference
from tasks.config.schema import Params
from tasks.data.dataset import load_split
from tasks.data.images import UnreadableImage, fit, with_channels
from tasks.data.sources.other import reference_source
from tasks.data.student import open_student, student_diagnostics
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import cached_spec, open_trajectories
from tasks.evaluation.samplers import Inputs, Paths, choose_nfe, to_float
from tasks.registry.lineage import git_state, stage_sums
from tasks.utils.device import pick_device

PATH_SAMPLES = 256
OWN_NAMES = ("real", "teacher", "student", "untrained", "noise_first")
TITLES = {"SigDEGPipeline": "Sig-DEG student", "SwDPipeline": "SwD student"}


def load_inputs(params: Params, root: Path) -> Inputs:
    """Teacher, student, cached paths and real images; InputError for what is missing or does not
    match.
    """
    device = pick_device()
    teacher = load_teacher(root, device)
    student = open_student(root, device)
    nfe = choose_nfe(params.evaluation.nfe, student.nfe)
    untrained = untrained_like(student, params, root, teacher, nfe).to(device)
    pipelines = {"student": student, "untrained": untrained}
    rivals = open_rivals(params.evaluation.rivals, root, device)
    for network in (teacher.network, *(pipe.unet for pipe in (pipelines | rivals).values())):
        if device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls = {(name, n): pipe.network_calls(n) for name, pipe in pipelines.items() for n in nfe}
    calls |= {(name, n): pipe.network_calls(n) for name, pipe in rivals.items() for n in pipe.nfe}
    others: dict[str, Any] = {
        name: (pipe.rollout, tuple(pipe.nfe)) for name, pipe in rivals.items()
    }
    if scale_wise := isinstance(student, SwDPipeline):
        others["noise_first"] = (partial(student.rollout, noise_first=True), nfe)
    kind = "SwD" if scale_wise else "Sig-DEG"
    real, other = real_images(params, root)
    return Inputs(
        teacher=teacher,
        generators={name: pipe.rollout for name, pipe in pipelines.items()},
        paths=load_paths(params, root, teacher, () if scale_wise else nfe),
        real=real,
        other_real=other,
        nfe=nfe,
        steps=params.trajectories.steps,
        guidance=params.trajectories.guidance,
        calls={key: count for key, count in calls.items() if count != key[1]},
        others=others,
        titles={
            "student": f"Student {kind}",
            "untrained": f"Untrained {kind}",
            "noise_first": "Control: noise before upscaling",
            **{name: f"{TITLES[type(pipe).__name__]} in {name}" for name, pipe in rivals.items()},
        },
        lineage=lineage(params, root, teacher),
        diagnostics=student_diagnostics(root),
        device=device,
    )


def untrained_like(
    student: Any, params: Params, root: Path, teacher: Denoiser, nfe: tuple[int, ...]
) -> Any:
    """The plain generator: the teacher's network, neither calibrated nor trained."""
    if isinstance(student, SwDPipeline):
        return with_network(student, copy.deepcopy(teacher.network))
    spec = cached_spec(params.trajectories, teacher, open_trajectories(root))
    return build_pipeline(teacher, spec, untrained_config(params, nfe))[0]


def open_rivals(folders: Sequence[str], root: Path, device: torch.device) -> dict[str, Any]:
    """Other students, by the names of their folders (dots become underscores).

    A name that another sampler has gets the parent folder's in front, and so on.
    """
    opened: dict[str, Any] = {}
    for folder in folders:
        try:
            student = load_student(root / folder, device=device)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"evaluation.rivals: {folder} cannot be opened ({first})") from error
        opened[free_name((root / folder).resolve(), {*OWN_NAMES, *BASELINES, *opened})] = student
    return opened


def free_name(folder: Path, taken: set[str]) -> str:
    """The shortest end of the path, joined by underscores, that is not taken; InputError if there
    is none.
    """
    parts = [part.replace(".", "_") for part in folder.parts[1:]]
    for first in reversed(range(len(parts))):
        if (name := "_".join(parts[first:])) not in taken:
            return name
    raise InputError(
        f"evaluation.rivals: {folder} is named twice: expected each folder once; remove one"
    )


def untrained_config(params: Params, nfe: tuple[int, ...]) -> SigDEGConfig:
    """The method's settings that shape the generator before any training."""
    names = ("order", "look_ahead", "predict_order", "conditioning_limit")
    given = params.method.model_dump() if params.method.kind == "sigdeg" else {}
    return SigDEGConfig(nfe=nfe, **{name: given[name] for name in names if name in given})


def real_images(params: Params, root: Path) -> tuple[Tensor, Tensor]:
    """The images to compare with, and at most as many other real ones (the floor), both in [-1, 1].

    The first are those of `evaluation.reference`, or else the holdout split; the others are of the
    training split.
    """
    settings, seed = params.evaluation.reference, params.evaluation.seed
    train, _ = load_split(root, "train")
    real = (
        load_split(root, "holdout")[0]
        if settings is None
        else _reference(settings, root, train.shape[1:], seed)
    )
    chosen = np.sort(
        np.random.default_rng(seed).permutation(len(train))[: min(len(real), len(train))]
    )
    return to_float(real[:]), to_float(train[chosen])


def _reference(settings: Reference, root: Path, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """uint8 (n, C, S, S) in random order: some sets begin with their easy images, and some figures
    use the first.
    """
    channels, size = shape[0], shape[-1]
    source = reference_source(settings, root, channels)
    images = np.empty((len(source.names), *shape), dtype=np.uint8)
    for place, index in enumerate(np.random.default_rng(seed).permutation(len(images))):
        try:
            images[place] = fit(with_channels(source.read(index), channels), size)
        except UnreadableImage as error:
            which = f"evaluation.reference: {source.names[index]}"
            raise InputError(
                f"{which} is unreadable ({error}), expected an image; remove it"
            ) from None
    return images


def load_paths(params: Params, root: Path, teacher: Denoiser, nfe: tuple[int, ...]) -> Paths:
    """The validation paths of data/trajectories, with features for each number of steps (Chen's
    identity).
    """
    shards = open_trajectories(root)
    if shards.meta["teacher"] != teacher.fingerprint():
        raise InputError(
            "data/trajectories was made with another teacher; run python -m "
            "tasks.stages.trajectories again"
        )
    count = min(params.evaluation.samples, shards.rows("validation"))
    states = _read(shards, "Y", count)
    labels = torch.from_numpy(np.array(shards.array("validation", "labels")[:count]))
    fine = _read(shards, "xi", min(count, PATH_SAMPLES)) if nfe else torch.zeros(0)
    spec, config = cached_spec(params.trajectories, teacher, shards), untrained_config(params, nfe)
    xi = {n: make_step_schedule(spec, n, config).features(fine) for n in nfe}
    return Paths(states[:, 0].contiguous(), states, xi, teacher.encode_condition(labels))


def lineage(params: Params, root: Path, teacher: Denoiser) -> dict[str, str]:
    """Where the figures come from, for the report."""
    known = {"teacher fingerprint": teacher.fingerprint(), **git_state(root), **stage_sums(root)}
    seeds = {
        "dataset": params.dataset.seed,
        "trajectories": params.trajectories.seed,
        "student": params.student.seed,
        "evaluation": params.evaluation.seed,
    }
    gpu = teacher.device.type == "cuda"
    known["device"] = (
        torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    )
    return known | {"seeds": ", ".join(f"{name} {seed}" for name, seed in seeds.items())}


def _read(shards: Any, name: str, count: int) -> Tensor:
    return torch.from_numpy(np.asarray(shards.array("validation", name)[:count], dtype=np.float32))
