"""Whole runs, `python -m flows.distill`, in folders and shells as people have them.

The stages are stand-ins (tests/flows/project.py); DVC, Prefect, MLflow and the registry are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.project import REPOSITORY, make_project, python, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROXIES = {  # nothing listens there, and no_proxy is not set
    "http_proxy": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
}
LEFT_OUT = ("no_proxy", "NO_PROXY", "PREFECT_API_URL", "PREFECT_HOME", "DVC_SITE_CACHE_DIR")


def shell(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | more


def whole_run(root: Path, **environ: str) -> str:
    """Every stage once, one version, which is champion; returns what was told on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.distill"],
        cwd=root,
        env=shell(**environ),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(runs(root).values()) == {1}
    assert "Traceback" not in done.stderr + done.stdout
    asked = "from tasks.registry import store\nfrom tasks.config.schema import load_params\n" \
        "from pathlib import Path\nimport json\n" \
        "params = load_params(Path('params.yaml'))\n" \
        "model = store.open_store(Path.cwd(), params).get_registered_model(params.registration.name)\n" \
        "print(json.dumps(model.aliases))"  # fmt: skip
    told = python(root, "-c", asked, env=shell(**environ))
    assert told.returncode == 0, told.stderr
    aliases = json.loads(told.stdout.strip().splitlines()[-1])
    assert {name: str(value) for name, value in aliases.items()} == {
        "challenger": "1",
        "champion": "1",
    }
    return done.stderr


@pytest.mark.parametrize(
    "name", ["me@corp.example", "my work #1 & more=", "it's [new] (é) µ", "--projet +1,2;3"]
)
def test_a_project_in_an_odd_folder(name: str, tmp_path: Path) -> None:
    root = make_project(tmp_path / name)
    whole_run(root)
    beside = sorted(path.name for path in tmp_path.iterdir())
    assert beside == [name]  # nothing was written where the name is read as something else
    assert (root / "mlruns/mlflow.db").is_file()


def test_inside_a_repository_that_ignores_everything(tmp_path: Path) -> None:
    """A home folder under git, as keepers of dotfiles have it; DVC would ask that repository."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("*\n")
    whole_run(make_project(tmp_path / "project", git=False))


def test_behind_proxies(tmp_path: Path) -> None:
    whole_run(make_project(tmp_path / "project"), **PROXIES)


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_results_that_are_links_into_the_cache(kind: str, tmp_path: Path) -> None:
    """DVC's cache on another disk; the registered version holds files, not links."""
    root = make_project(tmp_path / "project")
    (root / ".dvc/config.local").write_text(
        f"[cache]\n    type = {kind}\n    dir = {tmp_path / 'cache'}\n"
    )
    whole_run(root)
    weights = root / "data/student/unet/diffusion_pytorch_model.safetensors"
    assert weights.is_symlink() == (kind == "symlink")
    (kept,) = (root / "mlruns").rglob("student/unet/diffusion_pytorch_model.safetensors")
    assert not kept.is_symlink() and kept.read_bytes() == weights.read_bytes()
