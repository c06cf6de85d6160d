"""A LoRA that becomes part of the teacher's weights (Hu et al. 2022, arXiv 2106.09685)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.common.errors import InputError

# the first of the two matrices of a layer, in the formats that diffusers converts to
FIRST = re.compile(r"(lora_A|[._]down|lora_down)\.")


def fuse_lora(pipe: Any, path: str | Path, scale: float = 1.0) -> None:
    """Add ``scale`` times the LoRA of a .safetensors file, or of a folder with one, to the weights
    of a pipeline's network and text encoders, in place.

    Raises InputError where the pipeline takes none, where the file is none, and where a layer of
    the file has no place in the pipeline.
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"teacher.lora = {path}: a {kind} takes no LoRA; use null")
    file = _file(Path(path))
    with _quiet():
        try:
            found = pipe.lora_state_dict(str(file), use_safetensors=True)
            pipe.load_lora_weights(str(file), use_safetensors=True)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"teacher.lora = {path}: no LoRA that {kind} takes ({reason}); expected one "
                "trained for this kind of network, as diffusers or kohya's scripts save it"
            ) from error
    weights = found[0] if isinstance(found, tuple) else found
    given = sum(FIRST.search(key) is not None for key in weights)
    taken = sum(1 for _ in _adapters(pipe))
    if not given or taken != given:
        pipe.unload_lora_weights()
        raise InputError(
            f"teacher.lora = {path}: {taken} of its {given} layers have a place in this {kind}; "
            "expected all: a LoRA trained for another network, or in another format"
        )
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()


def _file(path: Path) -> Path:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file() or files[0].suffix != ".safetensors":
        there = f"{len(files)} .safetensors files" if path.is_dir() else "no .safetensors file"
        raise InputError(f"teacher.lora = {path}: {there}; expected one")
    return files[0]


def _adapters(pipe: Any) -> Iterator[Any]:
    """The layers that have one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in pipe.components.values():
        for module in part.modules() if hasattr(part, "modules") else ():
            if isinstance(module, BaseTunerLayer):
                yield module


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about layers that were not taken: they are counted here."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
