"""A tiny project of a text-to-image teacher with random weights, and prompts in the place of
images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tasks.config.schema import Params
from tests.models.teachers.pipelines import as_published, build

TEACHER = "in/teacher"
PROMPTS = [
    f"{animal} {place}" for animal in ("cat", "dog", "owl") for place in ("up", "down", "in")
]
HELD_OUT = 3
TRAJECTORIES = {
    "train": 12, "validation": 16, "steps": 8, "intervals": 4, "lane": 8, "shard_size": 8,
    "batch_size": 8, "guidance": 3.0, "grid": {"kind": "index"},
}  # fmt: skip
STUDENT = {
    "batch_size": 4, "steps": 2, "warmup": 1, "learning_rate": 1e-3, "validate_every": 1,
    "validation_samples": 6, "checkpoint_every": 1, "criterion": "kid",
}  # fmt: skip


def settings(**sections: dict[str, Any]) -> Params:
    """Params of the tiny project; keywords add to a section."""
    content: dict[str, dict[str, Any]] = {
        "dataset": {"kind": "none"},
        "teacher": {"source": "pretrained", "path": TEACHER, "size": 16},
        "conditions": {"prompts": "in/prompts.txt", "holdout": HELD_OUT, "batch_size": 4},
        "trajectories": TRAJECTORIES,
        "method": {"nfe": [4, 2], "loss": {"mmd": 0.0}, "calibrate": False},
        "student": STUDENT,
        "evaluation": {
            "samples": 6,
            "bootstrap": 5,
            "batch_size": 6,
            "neighbours": 2,
            "baselines": ["ddim"],
        },
        "registration": {"name": "tiny-prompts"},
    }
    for name, values in sections.items():
        same = values.get("kind", content[name].get("kind")) == content[name].get("kind")
        content[name] = (content[name] if same else {}) | values
    return Params.model_validate_json(json.dumps(content))


def write_inputs(root: Path, family: str = "sd") -> Path:
    """A stock pipeline folder with random weights, and a file of prompts."""
    torch.manual_seed(0)
    as_published(family, build(family)[0]).save_pretrained(root / TEACHER)
    (root / "in/prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return root
