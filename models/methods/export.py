"""Student pipelines of either method: made ready to save, and opened by the class their folder
names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.methods.sigdeg.pipeline import SigDEGPipeline, load_student
from models.methods.student_network import merged
from models.methods.swd.pipeline import SwDPipeline

PIPELINES: dict[str, Any] = {"SigDEGPipeline": SigDEGPipeline, "SwDPipeline": SwDPipeline}


def export_pipeline(pipeline: Any, weights: dict[str, Tensor] | None = None) -> Any:
    """A pipeline to save: ``weights`` (an EMA state dict, say) in place, LoRA folded in, a stock
    diffusers network.
    """
    trained = pipeline.unet
    if weights is not None:
        kept = {k: v.detach().clone() for k, v in trained.state_dict().items()}
        trained.load_state_dict(weights)
    network = merged(trained)
    if weights is not None:
        trained.load_state_dict(kept)
    return with_network(pipeline, network)


def with_network(pipeline: Any, network: torch.nn.Module) -> Any:
    """The same sampler around another network."""
    settings: dict[str, Any] = {k: v for k, v in pipeline.config.items() if not k.startswith("_")}
    return type(pipeline)(**{**settings, **pipeline.components, "unet": network})


def open_student(folder: Path, device: torch.device | str = "cpu") -> Any:
    """The pipeline of a student folder; raises ValueError if it is not one, or of an unknown
    class.
    """
    index = Path(folder) / "model_index.json"
    name = json.loads(index.read_text()).get("_class_name") if index.is_file() else "SigDEGPipeline"
    name = name[-1] if isinstance(name, list) else name
    if name not in PIPELINES:
        raise ValueError(
            f"student {folder}: pipeline class {name!r}; expected one of {', '.join(PIPELINES)}"
        )
    return load_student(folder, device, PIPELINES[name])
