"""Whatever people keep a teacher in: a pipeline folder, a hub id, or one file; with a LoRA."""

from __future__ import annotations

from typing import Any

from models.common.errors import InputError
from models.common.precision import DTYPES
from models.teachers.loading import network_of, open_pipeline
from models.teachers.lora import fuse_lora
from models.teachers.single_file import is_single_file, open_single_file


def open_source(
    source: str,
    *,
    config: str | None = None,
    lora: str | None = None,
    lora_scale: float = 1.0,
    variant: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The diffusers pipeline of ``source``, whole, with the LoRA in its weights; the parameters are
    those of `teacher` with the same names. Raises InputError as the functions it calls do, and for
    options that this kind of source has not.
    """
    if is_single_file(source):
        for name, value in (("variant", variant), ("revision", revision)):
            if value is not None:
                raise InputError(f"teacher.{name} = {value}: one file has none; use null")
        pipe = open_single_file(source, config)
        if dtype != "float32":
            network_of(pipe).to(DTYPES[dtype])
    elif config is not None:
        raise InputError(f"teacher.config = {config}: {source} is no .safetensors file; use null")
    else:
        pipe = open_pipeline(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            variant=variant,
            dtype=dtype,
        )
    if lora is not None:
        fuse_lora(pipe, lora, lora_scale)
    return pipe
