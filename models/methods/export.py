"""Student pipelines of every method: made ready to save, and opened by the class their folder
names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.common.own_weights import load_own_weights, own_weights
from models.methods.own_network import own_classes
from models.methods.prompt_encoding import TEXT_PARTS
from models.methods.registry import pipeline_class, pipeline_names
from models.methods.student_network import merged


def export_pipeline(pipeline: Any, weights: dict[str, Tensor] | None = None) -> Any:
    """A pipeline to save: ``weights`` (an EMA state dict, say, without its teacher's weights or
    with them) in place, LoRA folded in, a stock diffusers network.
    """
    trained = pipeline.unet
    if weights is not None:
        own = own_weights(trained, trained.state_dict())
        kept = {k: v.detach().clone() for k, v in own.items()}
        load_own_weights(trained, own_weights(trained, weights))
    network = merged(trained)
    if weights is not None:
        load_own_weights(trained, kept)
    return pipeline.with_network(network)


def open_student(folder: Path, device: torch.device | str = "cpu", encoders: bool = True) -> Any:
    """The pipeline of a student folder, by this project's own class: no code in the folder runs.
    ``encoders``: whether those of prompts are opened, where it carries any.

    Raises ValueError if it is not a student's folder, or of a class that no method has registered,
    or if its network brings code of its own that is not at hand.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"student {folder}: no model_index.json; expected a folder written by the student stage"
        )
    record = json.loads(index.read_text(encoding="utf-8"))
    name = record.get("_class_name")
    name = name[-1] if isinstance(name, list) else name
    if name not in pipeline_names():
        raise ValueError(
            f"student {folder}: pipeline class {name!r}; expected one of "
            f"{', '.join(pipeline_names())}"
        )
    own = own_classes(Path(folder), record)
    # diffusers leaves a part out that is given as None
    own_or_none = [*own, *(() if encoders else (n for n in TEXT_PARTS if n in record))]
    pipeline = pipeline_class(name).from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, **dict.fromkeys(own_or_none)
    )
    for part, kind in own.items():
        module = kind.from_pretrained(
            Path(folder) / part, use_safetensors=True, local_files_only=True
        )
        pipeline.register_modules(**{part: module})
    pipeline.to(device)
    return pipeline
