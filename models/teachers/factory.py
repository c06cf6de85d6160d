"""Teachers that are not diffusers pipelines: a function that returns a Denoiser.

The teacher stage calls the factory once and keeps the network's and the codec's weights; later
stages call it again for the structure and load those weights. It is called only where the params
name it with ``trust_remote_code: true``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from models.common.errors import InputError
from models.teachers.base import Denoiser
from models.teachers.trust import is_trusted

NETWORK, CODEC = "network.safetensors", "codec.safetensors"


def call_factory(name: str, arguments: Mapping[str, Any]) -> Denoiser:
    """The denoiser that "module:function" returns for these keyword arguments.

    Raises InputError where it is not trusted, cannot be imported or called, or returns anything
    else.
    """
    if not is_trusted(name):
        raise InputError(
            f"teacher.factory = {name}: code is not run unasked; read it, and if you trust it set "
            "teacher.source=factory, teacher.factory and teacher.trust_remote_code=true"
        )
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)(**arguments)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"teacher.factory = {name}: failed ({reason}); expected a function of an installed "
            "module or of a file in extensions, that takes teacher.arguments"
        ) from error
    if not isinstance(found, Denoiser):
        raise InputError(
            f"teacher.factory = {name}: returned {type(found).__name__}; expected a "
            "models.teachers.base.Denoiser"
        )
    return found


def save_weights(teacher: Denoiser, folder: Path) -> None:
    """Write the weights of network and codec into ``folder``."""
    save_model(teacher.network, str(folder / NETWORK))
    if next(iter(teacher.codec.state_dict()), None) is not None:
        save_model(teacher.codec, str(folder / CODEC))


def load_made(folder: Path, record: Mapping[str, Any]) -> Denoiser:
    """The denoiser of a folder that the teacher stage wrote; ``record`` is its teacher.json.

    Raises InputError if the factory now makes another structure than the weights have.
    """
    teacher = call_factory(str(record["factory"]), record.get("arguments") or {})
    for part, file in ((teacher.network, NETWORK), (teacher.codec, CODEC)):
        if not (folder / file).is_file():
            continue
        try:
            load_model(part, str(folder / file))
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{folder / file}: does not fit what teacher.factory = {record['factory']} makes "
                f"({reason}); run python -m tasks.stages.teacher again"
            ) from error
    if teacher.fingerprint() != record["fingerprint"]:
        raise InputError(
            f"teacher.factory = {record['factory']}: it makes another teacher than the one in "
            f"{folder}; run python -m tasks.stages.teacher again"
        )
    return teacher
