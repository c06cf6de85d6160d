"""Opening teachers: diffusers pipelines from a folder or a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.common.errors import InputError
from models.common.precision import DTYPES
from models.teachers.base import Denoiser
from models.teachers.codec import ScaledCodec
from models.teachers.factory import load_made
from models.teachers.families import FAMILIES, family_named, family_of
from models.teachers.prompts import PromptDenoiser
from models.teachers.trial import check_whole

Scaling = Mapping[str, Sequence[float]]
USED = {"unet", "transformer", "scheduler", "vae", "vqvae"}
RECORDED: dict[str, tuple[type, str]] = {
    "null_class": (int, "the number of a class"),
    "size": (int, "a number of pixels"),
    "scaling": (dict, "an object with mean and std"),
}
IGNORED = {"safety_checker", "feature_extractor"}  # they look at finished images only
ENCODERS = {f"{part}{i}" for part in ("tokenizer", "text_encoder") for i in ("", "_2", "_3")}


def load_denoiser(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Denoiser:
    """Open a diffusers pipeline folder or hub id (safetensors only), or a folder that the teacher
    stage wrote for a factory. Encoders of prompts are left on disk: a table of conditions takes
    their place (:class:`models.teachers.prompts.PromptDenoiser`).

    Raises InputError when the folder is missing or the denoiser or scheduler is of an
    unsupported kind.
    """
    record = read_record(source)
    if "factory" in record:
        return load_made(Path(source), record)
    pipe = open_pipeline(
        source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        encoders=False,
        dtype=record.get("dtype"),
    )
    return denoiser_of_pipeline(pipe, str(source))


def denoiser_of_pipeline(
    pipe: Any,
    source: str = "pipeline",
    null_class: int | None = None,
    scaling: Scaling | None = None,
    size: int | None = None,
) -> Denoiser:
    """Wrap the denoiser, scheduler and (for latent models) VAE of an opened pipeline.

    ``source`` names it in errors; if it is a folder with teacher.json, that may tell
    ``null_class``, the ``scaling`` of series and the ``size`` of images in pixels.
    """
    parts = pipeline_parts(pipe)
    network = network_of(pipe)
    family = family_of(network, source)
    known = USED | IGNORED | ENCODERS if issubclass(family, PromptDenoiser) else USED | IGNORED
    if unknown := sorted(set(parts) - known):
        raise InputError(
            f"teacher {source}: {type(pipe).__name__} has the parts {', '.join(unknown)}, which "
            "its images may depend on and this project does not use; expected a network, a "
            "scheduler and at most an autoencoder"
        )
    if parts.get("scheduler") is None:
        raise InputError(
            f"teacher {source}: a pipeline without scheduler; expected one that says the "
            "noise levels"
        )
    null_class = read_null_class(source) if null_class is None else null_class
    size = read_record(source).get("size") if size is None else size
    vae = parts.get("vae") or parts.get("vqvae")
    teacher = build_denoiser(network, parts["scheduler"], vae, null_class, size)
    if isinstance(teacher, PromptDenoiser):
        teacher.check_pipeline(pipe)
    teacher.check_channels(teacher.shape[0], vae)
    if scaling := read_record(source).get("scaling") if scaling is None else scaling:
        set_scaling(teacher, scaling, source)
    return teacher


def set_scaling(teacher: Denoiser, scaling: Scaling, source: str) -> None:
    """Let a teacher's data be in their own units: {"mean": (C,), "std": (C,)} of its states."""
    channels = teacher.shape[0]
    if len(teacher.shape) != 2 or any(len(scaling.get(k, ())) != channels for k in ("mean", "std")):
        raise InputError(
            f"teacher {source}: scaling {dict(scaling)}; expected mean and std with one number "
            f"per channel of series, this teacher makes states of {teacher.shape}"
        )
    teacher.codec = ScaledCodec(scaling["mean"], scaling["std"])


def pipeline_parts(pipe: Any) -> dict[str, Any]:
    """All that a pipeline holds, by name; ``components`` leaves optional parts out."""
    names = [
        name
        for name, kept_as in pipe.config.items()
        if not name.startswith("_") and isinstance(kept_as, list | tuple) and len(kept_as) == 2
    ]
    parts = {name: getattr(pipe, name, None) for name in names}
    return {name: part for name, part in parts.items() if hasattr(part, "save_pretrained")}


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a pipeline to a folder, without the folders that its parts came from."""
    for part in (pipeline, *pipeline_parts(pipeline).values()):
        if not hasattr(part, "register_to_config"):  # encoders and tokenizers of transformers
            vars(getattr(part, "config", part)).pop("_name_or_path", None)
            if hasattr(part, "name_or_path") and not hasattr(part, "config"):
                part.name_or_path = ""
        elif "_name_or_path" in part.config:
            part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(folder)


def network_of(pipe: Any) -> Any:
    """The denoising network of a pipeline, None where there is none."""
    parts = pipeline_parts(pipe)
    return parts.get("unet") or parts.get("transformer")


def build_denoiser(
    network: Any,
    scheduler: Any,
    vae: nn.Module | None = None,
    null_class: int | None = None,
    size: int | None = None,
) -> Denoiser:
    """The denoiser of a diffusers network, by its class's family."""
    sized = {} if size is None else {"size": size}
    family = family_of(network)
    found: Denoiser = family.from_diffusers(network, scheduler, vae, null_class, **sized)
    return found


def open_pipeline(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    encoders: bool = True,
    variant: str | None = None,
    dtype: str | None = None,
) -> Any:
    """A diffusers pipeline from a folder or hub id, safetensors weights only; InputError if there
    is none.

    ``encoders``: whether those of prompts are loaded too, which a folder allows to leave out.
    ``variant``: of the weights' files, such as fp16. ``dtype``: of the network, float32 if None;
    all other parts are float32, whatever their files hold.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.get_logger("diffusers.pipelines.pipeline_utils").addFilter(_is_news)
    if Path(source).exists() and not (Path(source) / "model_index.json").is_file():
        raise InputError(
            f"teacher {source}: no model_index.json; expected a diffusers pipeline folder "
            "(save_pretrained)"
        )
    number = DTYPES[dtype or "float32"]
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(source),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            variant=variant,
            dtype={"unet": number, "transformer": number, "default": torch.float32},
            **({} if encoders else dict.fromkeys(_encoders_of(Path(source)))),
        )
    except MemoryError:
        raise
    except Exception as error:  # odd configurations raise all sorts in diffusers' own code
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "custom code" in first and not trust_remote_code:
            raise InputError(
                f"teacher {source}: brings code of its own, which is not run unasked; read it, "
                "and if you trust it set "
                "teacher.trust_remote_code: true"
            ) from error
        if other := _other_weights(Path(source)):
            raise InputError(f"teacher {source}: {other}") from error
        raise InputError(
            f"teacher {source}: no diffusers pipeline with safetensors weights opens there "
            f"({first}); give "
            "a folder written by save_pretrained, or a hub id that this machine can reach"
        ) from error
    check_whole(pipeline_parts(pipe), str(source))
    return pipe


def _encoders_of(folder: Path) -> set[str]:
    """The parts of a folder's pipeline that prompts alone need; none where a part is missing or
    where they are something else than the parts of a text-to-image pipeline.
    """
    file = folder / "model_index.json"
    index = _json_of(file)
    networks = [index.get(name) for name in ("unet", "transformer")]
    kinds = [value[1] for value in networks if isinstance(value, list) and value[1] in FAMILIES]
    if not kinds or not issubclass(family_named(kinds[0]), PromptDenoiser):
        return set()
    return ENCODERS & index.keys()


def _is_news(record: LogRecord) -> bool:
    """Not that a DDPMPipeline expects a UNet2DModel: it keeps networks of series here."""
    return not record.getMessage().startswith("Expected types for unet")


def _other_weights(folder: Path) -> str | None:
    """What a folder has in the place of plain safetensors weights, and how to convert it."""
    for part in sorted(path for path in folder.glob("*") if path.is_dir()):
        files = sorted(part.iterdir())
        plain = [f for f in files if f.suffix == ".safetensors" and f.name.count(".") == 1]
        plain += [f for f in files if f.name.endswith(".safetensors.index.json")]
        other = [f for f in files if f.suffix in (".safetensors", ".bin") and f not in plain]
        if plain or not other:
            continue
        weights = next((f for f in other if f.suffix == ".safetensors"), other[0])
        pieces = weights.name.split(".")
        variant = f", variant={pieces[1]!r}" if len(pieces) == 3 else ""
        option = f"set teacher.variant={pieces[1]}, or " if len(pieces) == 3 else ""
        kind = "pickled weights" if weights.suffix == ".bin" else f"{pieces[1]} weights alone"
        trust = " (only if you trust the file)" if weights.suffix == ".bin" else ""
        return (
            f"{part.name}/{weights.name} is there, {kind}; expected "
            f"{pieces[0]}.safetensors; {option}convert the folder once{trust}: "
            f'python -c "from diffusers '
            f"import DiffusionPipeline as P; P.from_pretrained('{folder}', "
            f"use_safetensors={weights.suffix != '.bin'}{variant}).save_pretrained("
            f"'{folder}-converted')\""
        )
    return None


def read_null_class(source: str | Path) -> int | None:
    """The class that means "no class", from teacher.json in a pipeline folder; None where nothing
    says.
    """
    label: int | None = read_record(source).get("null_class")
    return label


def read_record(source: str | Path) -> dict[str, Any]:
    """The content of teacher.json in a folder, {} where there is none."""
    file = Path(source) / "teacher.json"
    if not file.is_file():
        return {}
    record = _json_of(file)
    if not record:
        raise InputError(
            f"{file}: not readable; expected a JSON object, with null_class if there is one"
        )
    for key, (kind, expected) in RECORDED.items():
        value = record.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise InputError(f"{file}: {key} = {value!r}: expected {expected}, or null")
    return record


def _json_of(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
