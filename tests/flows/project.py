"""A small project with the real pipeline's shape: six stages that only write little files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.paths import PROJECT

REPOSITORY = PROJECT

COMMON = """
import json, os, pathlib, shutil, sys, time
import yaml
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
def fresh(name):
    folder = pathlib.Path("data") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
def count(name):
    with open(f"runs-{name}.txt", "a") as file:
        file.write("x")
"""

STAGES = {
    "dataset": """
        count("dataset")
        (fresh("dataset") / "n.txt").write_text(str(params["dataset"]["holdout"]))
        print("dataset: written", flush=True)
    """,
    "teacher": """
        count("teacher")
        if pathlib.Path("refuse").exists():
            print("error: teacher.path: no such folder", file=sys.stderr)
            sys.exit(2)
        (fresh("teacher") / "w.txt").write_text("w")
    """,
    "conditions": """
        count("conditions")
        (fresh("conditions") / "manifest.json").write_text("{}")
    """,
    "trajectories": """
        count("trajectories")
        if pathlib.Path("crash-once").exists():
            os.unlink("crash-once")
            sys.exit("out of memory")
        (fresh("trajectories") / "y.txt").write_text(str(params["trajectories"]["seed"]))
    """,
    "student": """
        count("student")
        folder = fresh("student")
        for path in pathlib.Path("student-made-before").rglob("*"):
            if path.is_file():
                place = folder / path.relative_to("student-made-before")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
        steps = params["student"]["steps"]
        (folder / "student.json").write_text(json.dumps({"kind": "sigdeg", "nfe": [10, 5], "steps": steps}))
        (folder / "history.csv").write_text("step,loss,kid\\n0,2.0,\\n1,1.0,0.5\\n")
    """,
    "evaluation": """
        count("evaluation")
        folder = fresh("evaluation")
        kid = 1.0 / params["student"]["steps"]
        row = {"title": "student", "kid": kid, "kid_low": kid * 0.9, "kid_high": kid * 1.1, "frechet": 2.0}
        metrics = {"evaluation": {"samples": 10, "features": "mnist"}, "student": {"nfe10": row, "nfe5": row}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "table.csv").write_text("sampler,nfe,kid\\nstudent,10,%r\\nreal,,0.0\\n" % kid)
        (folder / "report.html").write_text("<!doctype html><title>Report</title>")
        (folder / "grids").mkdir()
        shutil.copy("pixel.png", folder / "grids" / "nfe10.png")
    """,
}

PIPELINE = """
import numpy as np
import torch
from diffusers import DiffusionPipeline

class TinyPipeline(DiffusionPipeline):
    nfe = [10, 5]

    def __init__(self, unet):
        super().__init__()
        self.register_modules(unet=unet)

    @torch.no_grad()
    def __call__(self, batch_size, num_inference_steps, class_labels=None, generator=None, output_type="np"):
        x = torch.randn((batch_size, 1, 8, 8), generator=generator)
        for step in range(num_inference_steps):
            x = x + 0.1 * self.unet(x, step).sample
        images = ((x + (class_labels or [0])[0]) / 8 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return type("Output", (), {"images": images})()
"""

DEPS = {
    "dataset": [],
    "teacher": ["data/dataset"],
    "conditions": ["data/teacher"],
    "trajectories": ["data/teacher", "data/conditions"],
    "student": ["data/teacher", "data/trajectories"],
    "evaluation": ["data/student"],
}
PARAMS = {"student": "[method, student]", "evaluation": "[evaluation]"}


def make_project(root: Path, git: bool = True) -> Path:
    """Write the project under `root`, with the real params.yaml and DVC configuration, and return
    `root`.
    """
    (root / "stages").mkdir(parents=True)
    for name, body in STAGES.items():
        (root / "stages" / f"{name}.py").write_text(COMMON + textwrap.dedent(body))
    lines = ["stages:"]
    for name, deps in DEPS.items():
        lines += [f"  {name}:", f"    cmd: python stages/{name}.py", "    deps:"]
        lines += [f"      - {dep}" for dep in (f"stages/{name}.py", *deps)]
        lines += [f"    params: {PARAMS.get(name, f'[{name}]')}", f"    outs: [data/{name}]"]
    (root / "dvc.yaml").write_text("\n".join(lines) + "\n")
    shutil.copy(REPOSITORY / "params.yaml", root)
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, root / ".dvc")
    write_student(root / "student-made-before")
    _pixel(root / "pixel.png")
    if git:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        (root / ".gitignore").write_text(
            "/data\n/mlruns\n/.fewstep\n/runs-*.txt\n/.dvc/tmp\n/.dvc/cache\n"
        )
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "start"]):
            subprocess.run(["git", *command], cwd=root, check=True)
    return root


def write_student(folder: Path, seed: int = 0) -> Path:
    """Write a student folder with the real one's interface and a network of a few weights."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    )
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    index = {"_class_name": ["pipeline", "TinyPipeline"], "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(
        json.dumps(index | {"unet": ["diffusers", "UNet2DModel"]})
    )
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "student.json").write_text(json.dumps({"kind": "sigdeg", "nfe": [10, 5]}))
    return folder


def runs(root: Path) -> dict[str, int]:
    """How often each stage's program has run."""
    counts = {name: root / f"runs-{name}.txt" for name in STAGES}
    return {name: len(path.read_text()) if path.exists() else 0 for name, path in counts.items()}


def python(root: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in the project, with this repository's packages importable."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )  # type: ignore[call-overload,no-any-return]


def _pixel(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2), (10, 20, 30)).save(path)
