"""Load what the evaluation compares from the earlier stages' results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.export import open_student as load_student
from models.methods.student_network import student_network
from models.sampling.baselines import BASELINES
from models.sampling.grids import subgrid
from models.sampling.signature import join_maps, joined
from models.teachers.base import Denoiser
from models.teachers.guidance import Guidance, GuidanceRange
from tasks.config.evaluation import Reference
from tasks.config.schema import Params
from tasks.data.agreement import check_teacher_fits_dataset, data_shape
from tasks.data.conditions import check_conditions, prompts_of_rows
from tasks.data.dataset import data_kind, has_data, load_manifest, load_split
from tasks.data.images import UnreadableImage, fit, with_channels
from tasks.data.reference import teacher_reference, training_sample
from tasks.data.sources.other import reference_source
from tasks.data.student import open_student, student_diagnostics
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import cached_spec, guidance_of, open_trajectories
from tasks.evaluation.laws import law_of
from tasks.evaluation.samplers import Inputs, Paths, choose_nfe
from tasks.registry.lineage import git_state, stage_sums
from tasks.utils.device import pick_device

PATH_SAMPLES = 256
OWN_NAMES = ("real", "teacher", "student", "untrained")


def load_inputs(params: Params, root: Path) -> Inputs:
    """Teacher, student, cached paths and real images; InputError for what is missing or does not
    match.

    What is to be known about a student comes from its pipeline: its title, untrained form, controls
    and the path features it follows. No method is asked.
    """
    device = pick_device()
    teacher = load_teacher(root, device)
    guidance = guidance_of(params.trajectories)
    teacher.embed_guidance(guidance)  # of students too; they learn it elsewhere
    check_teacher_fits_dataset(teacher, root)
    student = open_student(root, device)
    nfe = choose_nfe(params.evaluation.nfe, student.nfe)
    pipelines = {"student": student, "untrained": untrained_form(student, teacher).to(device)}
    controls = student.controls()
    rivals = open_rivals(params.evaluation.rivals, root, device, controls)
    check_weights({"data/student": student, **rivals}, guidance)
    for network in (teacher.network, *(pipe.unet for pipe in (pipelines | rivals).values())):
        if device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls = {(name, n): pipe.network_calls(n) for name, pipe in pipelines.items() for n in nfe}
    calls |= {(name, n): pipe.network_calls(n) for name, pipe in rivals.items() for n in pipe.nfe}
    others: dict[str, Any] = {
        name: (pipe.rollout, tuple(pipe.nfe)) for name, pipe in rivals.items()
    }
    others |= {name: (rollout, nfe) for name, (_, rollout) in controls.items()}
    real, other = real_images(params, root, teacher)
    paths = load_paths(params, root, teacher, nfe if follows_paths(student) else ())
    return Inputs(
        teacher=teacher,
        generators={name: pipe.rollout for name, pipe in pipelines.items()},
        paths=paths,
        real=real,
        other_real=other,
        nfe=nfe,
        steps=params.trajectories.steps,
        guidance=guidance,
        calls={key: count for key, count in calls.items() if count != key[1]},
        others=others,
        titles={
            "student": f"Student {student.title}",
            "untrained": f"Untrained {student.title}",
            **{name: title for name, (title, _) in controls.items()},
            **{name: f"{pipe.title} student in {name}" for name, pipe in rivals.items()},
        },
        kind=params.dataset.data_kind,
        channels=tuple(load_manifest(root).get("channels", ())),
        law=law_of(params.dataset),
        prompts=prompts_of_paths(root, teacher, len(paths)),
        against="real" if has_data(root) or params.evaluation.reference else "teacher",
        has_data=has_data(root),
        lineage=lineage(params, root, teacher),
        diagnostics=student_diagnostics(root),
        device=device,
    )


def untrained_form(student: Any, teacher: Denoiser) -> Any:
    """The student's sampler around the teacher's network, neither calibrated nor trained.

    Input channels that the student has beside the teacher's get zero weights.
    """
    network = (
        student_network(teacher, teacher.input_channels(student.unet)).requires_grad_(False).eval()
    )
    return student.untrained(network)


def check_weights(students: Mapping[str, Any], guidance: Guidance) -> None:
    """InputError for a student that takes weights of guidance as an input, but not those that the
    teacher is asked at.
    """
    asked = guidance if isinstance(guidance, GuidanceRange) else None
    for name, student in students.items():
        given = (student.prompts or {}).get("guidance_range")
        known = None if given is None else GuidanceRange(*given)
        inside = known and asked and known.low <= asked.low and asked.high <= known.high
        if known is not None and not inside:
            raise InputError(
                f"{name} takes guidance in {known} as an input, the trajectories have {guidance}; "
                "expected trajectories.guidance_range within that; make the trajectories and the "
                "student again, or leave it out of evaluation.rivals"
            )


def follows_paths(student: Any) -> bool:
    """Whether the student's rollout takes the features that are cached with the paths."""
    if student.path_features not in (None, "signature"):
        raise InputError(
            f"data/student follows paths by {student.path_features!r}: expected signature, which "
            "data/trajectories holds, or None"
        )
    return student.path_features is not None


def open_rivals(
    folders: Sequence[str], root: Path, device: torch.device, taken: Iterable[str] = ()
) -> dict[str, Any]:
    """Other students, by the names of their folders (dots become underscores).

    A name that another sampler has, or that is ``taken``, gets the parent folder's in front, and so
    on.
    """
    names = {*OWN_NAMES, *BASELINES, *taken}
    opened: dict[str, Any] = {}
    for folder in folders:
        try:
            student = load_student(root / folder, device, encoders=False)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"evaluation.rivals: {folder} cannot be opened ({first})") from error
        opened[free_name((root / folder).resolve(), names | opened.keys())] = student
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


def real_images(params: Params, root: Path, teacher: Denoiser) -> tuple[Tensor, Tensor]:
    """The data to compare with, and at most as many other real ones (the floor), both as a codec
    decodes them: images in [-1, 1], series in their own units.

    The first are those of `evaluation.reference`, or else the holdout split; the others are of the
    training split. Without a dataset the teacher's own images stand for both splits.
    """
    settings, seed = params.evaluation.reference, params.evaluation.seed
    if not has_data(root):
        if settings is None:
            images = teacher_reference(root, teacher, params.evaluation.samples)
        else:
            stored = _reference(settings, root, data_shape(teacher), seed)
            images = data_kind(root).to_float(stored)
        return images, training_sample(root, teacher, len(images))
    train, _ = load_split(root, "train")
    real = (
        load_split(root, "holdout")[0]
        if settings is None
        else _reference(settings, root, train.shape[1:], seed)
    )
    chosen = np.sort(
        np.random.default_rng(seed).permutation(len(train))[: min(len(real), len(train))]
    )
    to_float = data_kind(root).to_float
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
    check_conditions(teacher.condition_kind, shards.meta, root)
    count = min(params.evaluation.samples, shards.rows("validation"))
    states = _read(shards, "Y", count)
    fine = _read(shards, "xi", min(count, PATH_SAMPLES)) if nfe else torch.zeros(0)
    spec = cached_spec(params.trajectories, teacher, shards)
    for n in nfe:
        subgrid(spec.grid, n)  # refuses more steps than the cached grid has
    maps = {n: torch.as_tensor(join_maps(spec.chain, spec.parts, n)) for n in nfe}
    xi = {n: joined(fine, own) for n, own in maps.items()}
    condition = shards.condition(teacher, "validation", count)
    return Paths(states[:, 0].contiguous(), states, xi, condition)


def prompts_of_paths(root: Path, teacher: Denoiser, count: int) -> tuple[str, ...] | None:
    """The prompts of the first validation paths; None for a teacher that takes none."""
    if teacher.condition_kind != "prompts":
        return None
    labels = open_trajectories(root).array("validation", "labels")[:count]
    return tuple(prompts_of_rows(root, np.asarray(labels).tolist()))


def lineage(params: Params, root: Path, teacher: Denoiser) -> dict[str, str]:
    """Where the figures come from, for the report."""
    known = {"teacher fingerprint": teacher.fingerprint(), **git_state(root), **stage_sums(root)}
    seeds = {
        "dataset": getattr(params.dataset, "seed", "none"),
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
