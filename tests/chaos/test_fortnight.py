"""Two weeks of scheduled retraining, a night after the other: new data, a bad day, a worse teacher, a
better one, a rollback, a full disk. The real stages, with little numbers and the shipped teacher.

`pytest -m slow -s tests/chaos/test_fortnight.py` prints the tables of docs/retraining.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from flows.dvc.worktree import git
from flows.retrain import retrain
from flows.rollback import rollback
from tasks.config.presets import DEFAULT
from tasks.config.schema import load_params
from tasks.data.sources.mnist import mnist_source
from tasks.registry import promotion, registration, store
from tests.chaos.disks import filled, small_disk
from tests.chaos.project import make_project, write_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
NAME = "nightly"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FIRST, MORE, LATER = range(600), range(600, 800), range(800, 900)  # images that have arrived
MIDDLING, WORSE, BETTER = 0.5, 0.9, 0.0  # spread of the noise on the teacher's weights, relative


@dataclass
class Site:
    """The project, the folder that images arrive in, and the teacher's folder."""

    root: Path
    images: Path
    teacher: Path
    shipped: dict[str, torch.Tensor]
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def arrive(self, numbers: range) -> None:
        source = mnist_source()
        for number in numbers:
            digit = source.read(37 * number % len(source.names))[..., 0]  # they are sorted by class
            Image.fromarray(digit).save(self.images / f"{number:04d}.png")

    def damage(self) -> None:
        """Every image loses its second half, as by a copy that was broken off."""
        for path in self.images.iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def teach(self, spread: float) -> None:
        """The shipped teacher with noise on its weights."""
        generator = torch.Generator().manual_seed(0)
        noisy = {
            name: w + spread * w.std() * torch.randn(w.shape, generator=generator)
            if w.numel() > 1
            else w
            for name, w in self.shipped.items()
        }
        save_file(noisy, self.teacher / WEIGHTS)

    @property
    def champion(self) -> str | None:
        client = store.open_store(self.root, load_params(self.root / "params.yaml"))
        return registration.aliased_version(client, NAME, "champion")

    def night(self, day: int, what: str, expected: str, champion: str, **given: Any) -> str:
        """One night's run; its last state has to be `expected`, the champion `champion`."""
        flow: Any = given.pop("flow", retrain)
        state = flow(**given, return_state=True)
        message = " ".join(str(state.message).partition("; experiment ")[0].split())
        self.rows.append((str(day), what, f"{state.name}: {message}", str(self.champion)))
        assert (state.name, self.champion) == (expected, champion), self.table()
        return message

    def table(self) -> str:
        head = "| day | what happens | the run | champion |\n|---|---|---|---|\n"
        return head + "\n".join(f"| {' | '.join(row)} |" for row in self.rows)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 600) as place:
        yield place


@pytest.fixture
def site(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Site:
    root = make_project(tmp_path / "made")
    root = Path(shutil.copytree(root, disk / "project"))
    images, teacher = tmp_path / "images", tmp_path / "teacher"
    images.mkdir()
    shutil.copytree(root / "data/pretrained/mnist16", teacher)
    (teacher / WEIGHTS).chmod(0o644)
    write_settings(root, settings(images, teacher))
    preset = {"defaults": [{"override /dataset": "folder"}]} | settings(images, teacher)
    text = f"# @package _global_\n{yaml.safe_dump(preset, sort_keys=False)}"
    (root / f"conf/preset/{DEFAULT}.yaml").write_text(text)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    monkeypatch.chdir(root)
    return Site(root, images, teacher, load_file(root / "data/pretrained/mnist16" / WEIGHTS))


def settings(images: Path, teacher: Path) -> dict[str, Any]:
    """The preset `tiny`, on images and a teacher that may change."""
    return {
        "dataset": {"kind": "folder", "path": str(images), "size": 16, "channels": 1, "holdout": 200},
        "teacher": {"source": "pretrained", "path": str(teacher)},
        "trajectories": {
            "train": 64, "validation": 96, "steps": 20, "intervals": 4, "lane": 32,
            "batch_size": 32, "shard_size": 32,
        },
        "method": {"kind": "sigdeg", "nfe": [4], "calibrate": False},
        "student": {
            "steps": 4, "batch_size": 8, "warmup": 1, "validate_every": 2,
            "validation_samples": 32, "checkpoint_every": 2,
        },
        "evaluation": {"features": {"kind": "mnist"}, "samples": 96, "bootstrap": 200, "baselines": []},
        "registration": {"name": NAME},
    }  # fmt: skip


def test_fortnight(site: Site, disk: Path) -> None:
    nothing = ("nothing", "NothingChanged")
    site.arrive(FIRST)
    site.teach(MIDDLING)
    assert "first champion" in site.night(1, "600 images, a teacher", "Completed", "1")
    site.night(2, *nothing, "1")
    site.arrive(MORE)
    told = site.night(3, "200 more images", "Completed", "2")
    assert "version 2 replaces version 1: better" in told
    site.night(4, *nothing, "2")
    site.damage()
    site.night(5, "every image is cut in half", "Failed", "2")
    site.arrive(range(800))
    told = site.night(6, "the images are whole again", "NothingChanged", "2")
    assert "version 2" in told  # of day 3
    site.teach(WORSE)
    told = site.night(7, "the teacher is worse", "Completed", "2")
    assert "version 2 stays champion: worse" in told
    site.night(8, *nothing, "2")
    site.teach(BETTER)
    told = site.night(9, "a better teacher", "Completed", "4")
    assert "version 4 replaces version 2: better" in told
    site.night(10, *nothing, "4")
    told = site.night(11, "somebody rolls back", "Completed", "2", flow=rollback)
    assert "version 2 is champion again, in place of version 4" in told
    told = site.night(12, *nothing, "2")
    assert "version 4 replaces version 2" in told and "; rolled back on " in told
    site.arrive(LATER)
    with filled(disk, 2_000_000):
        told = site.night(13, "100 more images, and the disk is full", "Failed", "2")
        assert "No space left" in told or "no space left" in told
    told = site.night(14, "there is room again", "Completed", "5")
    assert "version 5 replaces version 2: better" in told
    print(f"\n{site.table()}\n\n{registry(site)}")
    assert git(site.root, "worktree", "list").count("\n") == 0


def registry(site: Site) -> str:
    """The versions, what was decided about each, and the history of champions."""
    client = store.open_store(site.root, load_params(site.root / "params.yaml"))
    versions = client.search_model_versions(f"name = '{NAME}'")
    found = sorted(versions, key=lambda item: int(item.version))
    assert [str(item.version) for item in found] == ["1", "2", "3", "4", "5"]
    lines = ["| version | decision | rolled back |", "|---|---|---|"]
    for item in found:
        back = item.tags.get(promotion.ROLLED_BACK, "")
        lines.append(
            f"| {item.version} | {item.tags[promotion.DECISION]} | {'yes' if back else ''} |"
        )
    earlier = promotion.history(client, NAME)
    assert json.dumps(earlier) == '["1", "2"]', earlier
    return "\n".join(lines)
