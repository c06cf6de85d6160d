"""A tiny project with digits, a random teacher and its trajectories, for tests of the student
stage.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.config.schema import Params
from tasks.data.dataset import load_split
from tasks.stages import dataset, trajectories
from tests.models.evaluation.test_features import SHIPPED
from tests.paths import PROJECT
from tests.tiny import save_teacher

TRAJECTORIES = {
    "train": 16,
    "validation": 8,
    "steps": 8,
    "intervals": 4,
    "lane": 8,
    "shard_size": 8,
}
STUDENT = {"batch_size": 4, "steps": 4, "validation_samples": 8, "learning_rate": 1e-3, "warmup": 1}


def settings(**sections: dict[str, Any]) -> Params:
    """Params of the tiny project; keywords add to a section, e.g. student={"steps": 6}."""
    content: dict[str, dict[str, Any]] = {
        "dataset": {"kind": "digits", "size": 8, "holdout": 100},
        "trajectories": TRAJECTORIES,
        "method": {"nfe": [4, 2]},
        "student": STUDENT | {"validate_every": 2, "checkpoint_every": 2},
    }
    for name, values in sections.items():
        content[name] = content.get(name, {}) | values
    return Params.model_validate_json(json.dumps(content))


def make_root(root: Path, classes: int | None = None, prediction: str = "v_prediction") -> Path:
    """Write data/dataset, data/teacher, data/trajectories and params.yaml under ``root``."""
    torch.set_num_threads(1)
    params = settings()
    (root / "data" / "pretrained").mkdir(parents=True)
    shutil.copytree(SHIPPED, root / "data" / "pretrained" / SHIPPED.name)
    dataset.run(params, root)
    save_teacher(root, classes, prediction=prediction)
    trajectories.run(params, root)
    return root


def from_training_split(root: Path, images: torch.Tensor) -> bool:
    """Whether all images (n, C, H, W) in [-1, 1] are of the training split."""
    known = {image.tobytes() for image in np.asarray(load_split(root, "train")[0][:])}
    return all(
        image.tobytes() in known for image in ((images + 1) * 127.5).round().to(torch.uint8).numpy()
    )


def stage(root: Path, params: Params, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run the student stage as its own process in ``root``, after ``code``."""
    (root / "params.yaml").write_text(params.model_dump_json())
    program = f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n{code}\n"
    program += "from tasks.utils.cli import stage_main\nfrom tasks.stages import student\nstage_main(student.run, [])\n"
    script = root / "stage.py"
    script.write_text(program)
    command = [sys.executable, str(script)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
