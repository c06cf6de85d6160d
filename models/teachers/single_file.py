"""Checkpoints in one file, as fine-tunes are passed on: a ``.safetensors`` in the format of the
model's own authors. What the file does not say, such as its scheduler and its tokenizers, comes
from a pipeline folder of the same kind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from models.common.errors import InputError

V_PREDICTION = "v_pred"  # a key that some trainers leave as a mark


def is_single_file(source: str | Path) -> bool:
    """Whether a path names a checkpoint in one file."""
    return Path(source).suffix in (".safetensors", ".ckpt")


def open_single_file(source: str | Path, config: str | Path | None) -> Any:
    """The diffusers pipeline of a checkpoint; ``config``: a folder with the model_index.json and
    the parts' configurations of the same kind of model, whose weights, where it has them, serve for
    parts that the file lacks.

    Raises InputError for a file or a folder that is none of that, for a LoRA, for weights that do
    not fit, and where the file is marked as v-prediction and the folder's scheduler is not.
    """
    import diffusers

    keys = _keys(Path(source))
    folder = _config(source, config)
    index = json.loads((folder / "model_index.json").read_text())
    kind = getattr(diffusers, index["_class_name"])
    if not hasattr(kind, "from_single_file"):
        raise InputError(
            f"teacher.config = {config}: a {kind.__name__}, which diffusers opens from a folder "
            "alone; expected one of Stable Diffusion's or FLUX's"
        )
    absent = {"safety_checker", "feature_extractor", "image_encoder"} & index.keys()
    try:
        with _unused() as unused:
            pipe = kind.from_single_file(
                str(source),
                config=str(folder),
                local_files_only=True,
                dtype=torch.float32,
                **dict.fromkeys(absent),
            )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "meta tensor" in reason:  # what it did not find was never made
            reason = "weights are missing"
        raise InputError(
            f"teacher {source}: does not fit the {kind.__name__} of teacher.config = {config} "
            f"({reason}); expected the folder of the model that it was trained from"
        ) from error
    if unused:
        raise InputError(
            f"teacher {source}: weights of the file have no place in the {kind.__name__} of "
            f"teacher.config = {config} ({unused[0]}); expected the folder of the model that it "
            "was trained from"
        )
    _check(pipe, keys, source, config)
    return pipe


@contextmanager
def _unused() -> Iterator[list[str]]:
    """What diffusers warns about while it opens a file: weights that it did not use."""
    from diffusers.utils import logging as settings

    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "were not used" in record.getMessage():
                found.append(" ".join(record.getMessage().split())[:120])

    settings.disable_progress_bar()
    logger, collector = logging.getLogger("diffusers"), Collector(logging.WARNING)
    level, handlers = logger.level, logger.handlers
    logger.setLevel(logging.WARNING)
    logger.handlers = [collector]
    try:
        yield found
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


def _keys(file: Path) -> set[str]:
    if file.suffix != ".safetensors":
        raise InputError(
            f"teacher {file}: pickled weights, which can run code; expected .safetensors"
        )
    try:
        with safe_open(file, framework="pt") as weights:
            keys = set(weights.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"teacher {file}: not readable as .safetensors ({str(error).splitlines()[0]}); "
            "expected a checkpoint in one file"
        ) from error
    if keys and all("lora" in key or key.endswith(".alpha") for key in keys):
        raise InputError(
            f"teacher {file}: a LoRA, not a model; set teacher.path to the model that it was "
            "trained on and teacher.lora to this file"
        )
    return keys


def _config(source: str | Path, config: str | Path | None) -> Path:
    if config is None:
        raise InputError(
            f"teacher {source}: one file does not say its scheduler and tokenizers; set "
            "teacher.config to a diffusers pipeline folder of the same kind of model, such as the "
            "one it was trained from (weights are not needed there)"
        )
    if not (Path(config) / "model_index.json").is_file():
        raise InputError(
            f"teacher.config = {config}: no model_index.json; expected a diffusers pipeline folder"
        )
    return Path(config)


def _check(pipe: Any, keys: set[str], source: str | Path, config: str | Path | None) -> None:
    """That no weight is left over or missing, and that the file's mark is heeded."""
    for name, part in pipe.components.items():
        missing = [
            key
            for key, value in (part.state_dict() if hasattr(part, "state_dict") else {}).items()
            if isinstance(value, torch.Tensor) and value.is_meta
        ]
        if missing:
            raise InputError(
                f"teacher {source}: {len(missing)} weights of its {name} are not there, such as "
                f"{missing[0]}; expected a file that fits teacher.config = {config}"
            )
    prediction = pipe.scheduler.config.get("prediction_type")
    if V_PREDICTION in keys and prediction != "v_prediction":
        raise InputError(
            f"teacher {source}: marked as v-prediction, the scheduler of teacher.config = {config} "
            f"says {prediction}; expected v_prediction in its scheduler_config.json"
        )
