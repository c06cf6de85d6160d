"""A real project that is done in seconds: scikit-learn digits, a teacher trained on them, a student
of a few steps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.config.overrides import validated
from tasks.config.presets import DEFAULT
from tasks.config.schema import Params
from tasks.config.written import params_text
from tasks.utils.failpoints import HOLD_AT, KILL_AT, MARK
from tests.paths import PROJECT

REPOSITORY = PROJECT
STAGES = ("dataset", "teacher", "conditions", "trajectories", "student", "evaluation")
PARAMS = {
    "dataset": {"kind": "digits", "size": 8, "holdout": 100},
    "teacher": {
        "source": "train", "steps": 12, "batch_size": 16, "warmup": 2, "ema": 0.9, "channels": [8, 16],
        "layers_per_block": 1, "scales": [8], "checkpoint_every": 4,
    },
    "trajectories": {
        "train": 24, "validation": 16, "steps": 8, "intervals": 4, "lane": 8, "shard_size": 8, "batch_size": 8,
    },
    "method": {"kind": "sigdeg", "nfe": [4, 2], "calibrate": False},
    "student": {
        "steps": 6, "batch_size": 4, "warmup": 1, "learning_rate": 1e-3, "validate_every": 2,
        "validation_samples": 16, "checkpoint_every": 2,
        "seed": 0,  # every validation is better than the last, so that weights are kept before each checkpoint
    },
    "evaluation": {
        "features": {"kind": "mnist"}, "samples": 16, "baselines": ["ddim"], "bootstrap": 10, "batch_size": 16,
    },
    "registration": {"name": "chaos"},
}  # fmt: skip
VARIANTS = [{"override /dataset": "digits"}, {"override /teacher": "train"}]
COPIED = (
    "conf",
    "models",
    "tasks",
    "flows",
    "dvc.yaml",
    "prefect.yaml",
    ".gitignore",
    "data/.gitignore",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
)
PRETRAINED = ("mnist16", "mnist_features", "emoji_captions")


def make_project(root: Path) -> Path:
    """Write the project under `root`: this repository's code, small params, nothing done yet."""
    for name in COPIED:
        source, place = REPOSITORY / name, root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, place)
    for name in PRETRAINED:
        shutil.copytree(
            REPOSITORY / "data/pretrained" / name,
            root / "data/pretrained" / name,
            copy_function=os.link,
        )
    write_settings(root, PARAMS)
    return root


def write_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings as params.yaml, every key spelled out, and as the default preset."""
    params = validated(Params, settings, "chaos")
    (root / "params.yaml").write_text(params_text(params, "Of the chaos tests."))
    preset = {"defaults": VARIANTS} | dict(settings)
    text = f"# @package _global_\n{yaml.safe_dump(preset, sort_keys=False)}"
    (root / f"conf/preset/{DEFAULT}.yaml").write_text(text)


def copy_until(made: Path, root: Path, stage: str = "") -> Path:
    """A copy of the finished project `made` in which `stage` and all after it have yet to run."""
    later = {root / "data" / name for name in STAGES[STAGES.index(stage) :]} if stage else set()
    shutil.copytree(made, root, symlinks=True)
    for folder in later:
        shutil.rmtree(folder)
    return root


def record(root: Path, *stages: str) -> None:
    """Let DVC record the results of these stages (none: all) as those of the present code and
    params.
    """
    if not (root / ".git").exists():
        (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    done = execute(
        root, [sys.executable, "-m", "tasks.utils.environment", "dvc", "commit", "--force", *stages]
    )
    assert done.returncode == 0, done.stderr + done.stdout


def environ(
    root: Path, kill: str = "", hold: str = "", more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a program of the project that is to be killed or held at a point."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name not in (KILL_AT, HOLD_AT, MARK, "PYTHONPATH")
    }
    found |= {"DVC_SITE_CACHE_DIR": str(root / ".fewstep/dvc"), "PYTHONDONTWRITEBYTECODE": "1"}
    asked = {KILL_AT: kill, HOLD_AT: hold}
    if kill or hold:
        found |= {name: point for name, point in asked.items() if point} | {
            MARK: str(root.with_name("mark"))
        }
    return found | dict(more or {})


def execute(
    root: Path, command: Sequence[str], kill: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project to its end, which may be a violent one at the point `kill`."""
    return subprocess.run(
        command,
        cwd=root,
        env=environ(root, kill, more=more),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def result(root: Path) -> dict[str, bytes]:
    """The final student: its weights and its record, byte for byte."""
    folder = root / "data/student"
    files = [
        *sorted(folder.glob("unet/*.safetensors")),
        folder / "student.json",
        folder / "history.csv",
    ]
    assert len(files) == 3, files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders of killed writers."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(".*.tmp-*"))
