"""Opening teachers: diffusers pipelines from a folder or a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from models.common.errors import InputError
from models.teachers.base import Denoiser
from models.teachers.families import family_of


def load_denoiser(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Denoiser:
    """Open a diffusers pipeline folder or hub id (safetensors only).

    Raises InputError when the folder is missing or the denoiser or scheduler is of an
    unsupported kind.
    """
    pipe = open_pipeline(source, revision=revision, trust_remote_code=trust_remote_code)
    return denoiser_of_pipeline(pipe, str(source))


def denoiser_of_pipeline(
    pipe: Any, source: str = "pipeline", null_class: int | None = None
) -> Denoiser:
    """Wrap the denoiser, scheduler and (for latent models) VAE of an opened pipeline.

    ``source`` names it in errors; if it is a folder with teacher.json, that may tell
    ``null_class``.
    """
    parts = pipe.components
    network = parts.get("unet") or parts.get("transformer")
    family_of(network, source)
    if parts.get("scheduler") is None:
        raise InputError(
            f"teacher {source}: a pipeline without scheduler; expected one that says the "
            "noise levels"
        )
    null_class = read_null_class(source) if null_class is None else null_class
    return build_denoiser(network, parts["scheduler"], parts.get("vae"), null_class)


def build_denoiser(
    network: Any, scheduler: Any, vae: nn.Module | None = None, null_class: int | None = None
) -> Denoiser:
    """The denoiser of a diffusers network, by its class's family."""
    found: Denoiser = family_of(network).from_diffusers(network, scheduler, vae, null_class)
    return found


def open_pipeline(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """A diffusers pipeline from a folder or hub id, safetensors weights only; InputError if there
    is none.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    if Path(source).exists() and not (Path(source) / "model_index.json").is_file():
        raise InputError(
            f"teacher {source}: no model_index.json; expected a diffusers pipeline folder "
            "(save_pretrained)"
        )
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(source),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "custom code" in first and not trust_remote_code:
            raise InputError(
                f"teacher {source}: brings code of its own, which is not run unasked; read it, "
                "and if you trust it set "
                "teacher.trust_remote_code: true"
            ) from error
        raise InputError(
            f"teacher {source}: no diffusers pipeline with safetensors weights opens there "
            f"({first}); give "
            "a folder written by save_pretrained, or a hub id that this machine can reach"
        ) from error
    return pipe


def read_null_class(source: str | Path) -> int | None:
    """The class that means "no class", from teacher.json in a pipeline folder; None where nothing
    says.
    """
    record = Path(source) / "teacher.json"
    if not record.is_file():
        return None
    try:
        label = json.loads(record.read_text()).get("null_class")
    except (ValueError, AttributeError):
        raise InputError(
            f"{record}: not readable; expected a JSON object, with null_class if there is one"
        ) from None
    return None if label is None else int(label)
