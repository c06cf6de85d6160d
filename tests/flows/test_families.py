"""`fewstep run` with every family of teachers, from a pipeline folder, and prompts or images, to a
served model: DVC, Prefect, MLflow and its server are real, weights are few and random.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDPMPipeline, EDMEulerScheduler, ScoreSdeVePipeline, ScoreSdeVeScheduler

from tests.chaos.project import COPIED, PRETRAINED
from tests.flows.served import free_port, wait_until_up
from tests.paths import PROJECT
from tests.tasks.prompts import write_inputs
from tests.tiny import score_network, tiny_unet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LORA = ["method.trainable=lora", "method.lora_rank=2"]
SIGDEG = [*LORA, "method.inputs=none", "method.conditioning_limit=null", "method.nfe=[4,2]"]
SWD = [
    *LORA, "method.kind=swd", "method.schedule.kind=given", "method.schedule.pairs=[[1.0,4],[0.6,8]]",
    "method.dmd.samples=8", "method.dmd.steps=2",
]  # fmt: skip
WIDENED = [*LORA, "method.nfe=[4,2]"]
SETTINGS = [
    "teacher.path=in/teacher", "trajectories.train=12", "trajectories.validation=16",
    "trajectories.steps=8", "trajectories.lane=8", "trajectories.batch_size=8",
    "trajectories.shard_size=8", "student.steps=2", "student.batch_size=4",
    "student.validate_every=1", "student.validation_samples=6", "student.checkpoint_every=1",
    "evaluation.samples=6", "evaluation.bootstrap=5", "evaluation.batch_size=6",
    "evaluation.neighbours=2", "evaluation.baselines=[ddim]",
]  # fmt: skip
PROMPTS = ["conditions.prompts=in/prompts.txt", "conditions.holdout=3"]
DIGITS = ["dataset.kind=digits", "dataset.size=8", "dataset.holdout=100"]
RUNS = {  # name: (pipeline, size of its images, overrides, form in the stock pipeline)
    "sd": ("sd", 16, SIGDEG, "lora"),
    "sd-widened": ("sd", 16, WIDENED, None),
    "sd2": ("sd2", 16, SIGDEG, "lora"),
    "sdxl": ("sdxl", 16, SIGDEG, "lora"),
    "edm": ("edm", 16, SIGDEG, "lora"),
    "sd3": ("sd3", 16, SIGDEG, "lora"),
    "sd3-swd": ("sd3", 16, SWD, "lora"),
    "flux": ("flux", 16, SIGDEG, "lora"),
    "pixart": ("pixart", 16, SIGDEG, "network"),
    "sana": ("sana", 32, SIGDEG, "lora"),
}


def edm_over_pixels() -> DDPMPipeline:
    return DDPMPipeline(tiny_unet(), EDMEulerScheduler(sigma_max=20.0))


def score_sde() -> ScoreSdeVePipeline:
    network = score_network(in_channels=1, out_channels=1)
    return ScoreSdeVePipeline(network, ScoreSdeVeScheduler(num_train_timesteps=8, sigma_max=30.0))


PIXELS = {  # name: (pipeline, overrides); no stock pipeline asks such a network as its student does
    "edm": (edm_over_pixels, WIDENED),
    "edm-swd": (edm_over_pixels, [*SWD, "method.schedule.pairs=[[1.0,4],[0.6,8]]"]),
    "score-sde": (score_sde, SIGDEG),
}


def whole_run(root: Path, preset: str, overrides: list[str]) -> dict[str, Any]:
    """The job from end to end, with what is in `root`/in; returns metrics.json."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source, place = PROJECT / name, root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=ignore)
        else:
            shutil.copyfile(source, place)
    for name in PRETRAINED:
        shutil.copytree(PROJECT / "data/pretrained" / name, root / "data/pretrained" / name)
    shutil.copyfile(PROJECT / "params.yaml", root / "params.yaml")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PREFECT_API_URL")}
    command = [sys.executable, "-m", "flows.cli", "run", "--preset", preset]
    done = subprocess.run(
        [*command, *SETTINGS, *overrides],
        cwd=root,
        env=environ | {"DVC_SITE_CACHE_DIR": str(root / ".fewstep/dvc")},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    metrics: dict[str, Any] = json.loads((root / "data/evaluation/metrics.json").read_text())
    return metrics


def served(root: Path, name: str, rows: list[dict[str, str]], **params: int) -> Any:
    """The champion's images, (n, H, W, channels), from a server that knows nothing of the
    project.
    """
    port = free_port()
    # MLflow's client leaves its registry in the variables of a process that has used one
    left_out = ("PYTHONPATH", "MLFLOW_REGISTRY_URI")
    environ = {k: v for k, v in os.environ.items() if k not in left_out}
    environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlruns/mlflow.db'}"}
    programs = Path(sys.executable).parent  # mlflow calls uvicorn by its name
    environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    model = ["-m", f"models:/{name}@champion", "--env-manager", "local"]
    elsewhere = root.with_name("elsewhere")
    elsewhere.mkdir()
    server = subprocess.Popen(
        [str(programs / "mlflow"), "models", "serve", *model,
         "-h", "127.0.0.1", "-p", str(port)],
        cwd=elsewhere,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_until_up(f"http://127.0.0.1:{port}/ping", server)
        body = json.dumps({"dataframe_records": rows, "params": params | {"seed": 7}})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            images = np.array(json.loads(answer.read())["predictions"])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    return images


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run(name: str, tmp_path: Path) -> None:
    family, size, overrides, form = RUNS[name]
    root = tmp_path / "project"
    write_inputs(root, family)
    metrics = whole_run(root, "tiny-prompts", [*PROMPTS, f"teacher.size={size}", *overrides])
    assert metrics["load_back"]["ok"] and metrics["evaluation"]["against"] == "teacher"
    for sampler in ("student", "untrained", "teacher"):
        assert all(np.isfinite(row["kid"]) for row in metrics[sampler].values())
    record = json.loads((root / "data/student/student.json").read_text())
    card = (root / "data/student/README.md").read_text()
    if form is None:
        assert (
            "takes more than the state" in record["stock"]["reason"]
            and "stock" not in metrics["load_back"]
        )
        assert record["stock"]["reason"] in card
    else:
        assert record["stock"]["weights"] == form
        assert metrics["load_back"]["stock"]["ok"], metrics["load_back"]
        assert f"pipe = {record['stock']['pipeline']}.from_pretrained" in card
    rows = [{"prompt": "cat up"}, {"prompt": "owl in"}]
    images = served(root, "fewstep-tiny-prompts", rows, num_images=2)
    assert images.shape == (4, size, size, 3) and np.abs(images[0] - images[2]).max() > 1e-3


@pytest.mark.parametrize("name", PIXELS)
def test_a_whole_run_over_pixels(name: str, tmp_path: Path) -> None:
    build, overrides = PIXELS[name]
    root = tmp_path / "project"
    build().save_pretrained(root / "in/teacher")
    metrics = whole_run(root, "tiny", [*DIGITS, *overrides])
    assert metrics["load_back"]["ok"]
    for sampler in ("student", "untrained", "teacher"):
        assert all(np.isfinite(row["kid"]) for row in metrics[sampler].values())
    record = json.loads((root / "data/student/student.json").read_text())
    assert "weights" not in record["stock"] and record["stock"]["reason"]
    images = served(root, "fewstep-tiny", [{"request": "mine"}], num_images=3)
    assert images.shape == (3, 8, 8, 1) and images.std() > 0.01
