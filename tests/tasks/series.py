"""A tiny project of series: AR(1), a random teacher of a few weights, its trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline

from models.teachers.architectures import build_network, build_scheduler
from models.teachers.base import Denoiser
from models.teachers.loading import load_denoiser
from tasks.config.schema import Params
from tasks.data.dataset import load_manifest
from tasks.stages import dataset, trajectories
from tasks.utils.atomic import atomic_write_json
from tests.tasks.distillation import STUDENT, TRAJECTORIES
from tests.tiny import perturbed

# What Params of a dataset of series need beside it: metrics of series.
MEASURED: dict[str, dict[str, Any]] = {
    "student": {"criterion": "sig_w1"},
    "evaluation": {"features": {"kind": "none"}, "metrics": ["sig_w1"], "criterion": "sig_w1"},
}


def series_settings(**sections: dict[str, Any]) -> Params:
    """Params of the tiny project; keywords add to a section."""
    content: dict[str, dict[str, Any]] = {
        "dataset": {"kind": "ar1", "length": 16, "count": 200, "holdout": 50, "noise": 10.0},
        "trajectories": TRAJECTORIES,
        "method": {
            "nfe": [4, 2],
            "calibrate": False,
            "loss": {"path": 1.0, "mmd": 0.0, "score": 1.0, "score_patches": [0, 4]},
        },
        "student": STUDENT | {"validate_every": 2, "checkpoint_every": 2} | MEASURED["student"],
        "evaluation": MEASURED["evaluation"] | {"samples": 16, "bootstrap": 10},
    }
    for name, values in sections.items():
        content[name] = content.get(name, {}) | values
    return Params.model_validate_json(json.dumps(content))


def save_series_teacher(root: Path, channels: int = 1) -> Denoiser:
    """Write data/teacher as the teacher stage does, with the dataset's scaling, and load it."""
    torch.manual_seed(0)
    network = perturbed(build_network((channels, 16), (8, 16), 1))
    folder = root / "data" / "teacher"
    DDPMPipeline(unet=network, scheduler=build_scheduler("v_prediction", "linear")).save_pretrained(
        folder
    )
    scaling = load_manifest(root)["scaling"]
    atomic_write_json(folder / "teacher.json", {"null_class": None, "scaling": scaling})
    return load_denoiser(folder)


def make_series_root(root: Path) -> Path:
    """Write data/dataset, data/teacher and data/trajectories under ``root``."""
    torch.set_num_threads(1)
    params = series_settings()
    root.mkdir(parents=True, exist_ok=True)
    dataset.run(params, root)
    save_series_teacher(root)
    trajectories.run(params, root)
    return root
